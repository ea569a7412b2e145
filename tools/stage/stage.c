/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The kernel's stages by themselves: a VM1 in private memory, one queue pair, one port.
 *
 * stage_fill() is VM1: it takes back what was returned and makes every buffer available anew, each with
 * its descriptor, entry, header and first 64 bytes written. stage_work() is the kernel: it turns until
 * nothing is left. Both may be called from different threads, but not at once. As a program it does one
 * after the other and tells the packets; callgrind then counts what is inside rk_work_turn() only.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "stage_port.h"

#define BUS_BASE (1ull << 30)
#define HEADER_BYTES 12u
#define HEADROOM 64u /* of a buffer, before the frame; the header is its end */
#define TOUCHED 64u
#define DESC_WRITE 2u
#define PACKED_AVAIL (1u << 7) /* 2.8.1 */
#define PACKED_USED (1u << 15)
#define PACKED_MARKS (PACKED_AVAIL | PACKED_USED)
#define EVENT_DISABLE 1u /* 2.8.10 */
#define POSITION_WRAP (1u << 15)
#define PAGE 4096u
#define HUGE_PAGE (2u << 20)

/* 2.7.5, 2.7.6, 2.7.8 */
struct desc {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};

struct avail {
	uint16_t flags, index, entries[];
};

struct used {
	uint16_t flags, index;
	struct {
		uint32_t id, length;
	} elements[];
};

/* 2.8.13 */
struct packed_desc {
	uint64_t address;
	uint32_t length;
	uint16_t id, flags;
};

/* 2.8.14 */
struct event {
	uint16_t position, flags;
};

struct ring {
	struct desc *desc;
	struct avail *avail;
	struct used *used;
	struct packed_desc *packed; /* NULL: a split ring */
	uint32_t commit[2];         /* docs/device.md 5.6 */
	uint32_t place;             /* packed: the oldest descriptor, by laps 0 .. 2 * size - 1 */
	bool primed;                /* packed: it has been filled before */
	uint32_t first_slot; /* its buffers are first_slot .. first_slot + size - 1 */
	bool receives;
	uint16_t seen; /* used.idx as far as VM1 has looked */
	struct rk_direction_stats stats;
	struct rk_queue *queue;
};

struct stage {
	uint8_t *memory;
	uint64_t memory_bytes;
	uint32_t frame_bytes, slot_bytes, size, burst, regions;
	bool packed;
	uint64_t region_bytes; /* of those with buffers */
	uint64_t spare_lines;  /* where the first one of these can begin */
	struct rk_map *map;
	struct rk_port *port;
	struct rk_work work;
	struct ring transmit, receive;
	uint64_t sink; /* keeps reads whose result nobody wants */
};

#define STAGE_API __attribute__((visibility("default")))

STAGE_API struct stage *stage_new(const char *kind, uint32_t frame_bytes, uint32_t size,
				  uint32_t burst, uint32_t regions, uint32_t packed);
STAGE_API void stage_free(struct stage *stage);
STAGE_API void stage_fill(struct stage *stage);
STAGE_API uint64_t stage_work(struct stage *stage);
STAGE_API uint64_t stage_translate(struct stage *stage, uint32_t rounds);
STAGE_API uint64_t stage_cycles(const struct stage *stage);

/* ---- VM1 ---------------------------------------------------------------------------------------- */

/* Region 0 has the rings; those with slots leave holes as large as themselves. */
static uint8_t *region_at(const struct stage *stage, uint64_t region, uint64_t *bus)
{
	*bus = BUS_BASE + HUGE_PAGE + 2 * region * stage->region_bytes;
	return stage->memory + HUGE_PAGE + region * stage->region_bytes;
}

/* Slots go round the regions. They begin at another line of each: one line of all pages is one set of the cache. */
static uint8_t *slot_at(const struct stage *stage, uint32_t slot, uint64_t *bus)
{
	uint64_t region = slot % stage->regions, offset = slot / stage->regions * stage->slot_bytes;
	uint8_t *base = region_at(stage, region, bus);

	offset += region * 5 % stage->spare_lines * 64;
	*bus += offset;
	return base + offset;
}

/* Writes a buffer's frame anew, or reads what is in it; its bus address, header included. */
static uint64_t touch(struct stage *stage, struct ring *ring, uint32_t id, uint16_t index)
{
	uint32_t bytes = stage->frame_bytes < TOUCHED ? stage->frame_bytes : TOUCHED;
	uint64_t bus, word = 0, words[TOUCHED / 8];
	uint8_t *frame = slot_at(stage, ring->first_slot + id, &bus) + HEADROOM;

	if (ring->receives) {
		memcpy(words, frame, bytes);
		for (uint32_t i = 0; i < bytes / 8; i++)
			word += words[i];
		stage->sink += word;
	} else {
		memset(frame - HEADER_BYTES, 0, HEADER_BYTES);
		for (uint32_t i = 0; i < TOUCHED / 8; i++)
			words[i] = index + i;
		memcpy(frame, words, bytes);
	}
	return bus + HEADROOM - HEADER_BYTES;
}

/* A full ring's next descriptor to make available is the oldest one the kernel has used. */
static void fill_packed(struct stage *stage, struct ring *ring)
{
	for (uint32_t done = 0; done < stage->size; done++) {
		bool lap = ring->place < stage->size;
		struct packed_desc *desc = &ring->packed[ring->place % stage->size];
		uint16_t flags = __atomic_load_n(&desc->flags, __ATOMIC_ACQUIRE);
		uint32_t id = ring->primed ? desc->id % stage->size : done;

		/* Used in the lap before, whose wrap counter was the other one. */
		if (ring->primed && (flags & PACKED_MARKS) != (lap ? 0 : PACKED_MARKS))
			return;
		desc->address = touch(stage, ring, id, (uint16_t)ring->place);
		desc->length = HEADER_BYTES + stage->frame_bytes;
		desc->id = (uint16_t)id;
		flags = (lap ? PACKED_AVAIL : PACKED_USED) | (ring->receives ? DESC_WRITE : 0);
		__atomic_store_n(&desc->flags, flags, __ATOMIC_RELEASE);
		ring->place = (ring->place + 1) % (2 * stage->size);
	}
	ring->primed = true;
}

static void fill_split(struct stage *stage, struct ring *ring)
{
	const uint32_t mask = stage->size - 1;
	uint16_t used = __atomic_load_n(&ring->used->index, __ATOMIC_ACQUIRE);
	uint16_t index = ring->avail->index;

	for (; ring->seen != used; ring->seen++, index++) {
		uint32_t id = ring->used->elements[ring->seen & mask].id & mask;
		uint64_t bus = touch(stage, ring, id, index);

		ring->desc[id] = (struct desc){bus, HEADER_BYTES + stage->frame_bytes,
					       ring->receives ? DESC_WRITE : 0, 0};
		ring->avail->entries[index & mask] = (uint16_t)id;
	}
	/* 2.7.7.2: no interrupt before so many more. */
	ring->avail->entries[stage->size] = (uint16_t)(used + 0x7fff);
	__atomic_store_n(&ring->avail->index, index, __ATOMIC_RELEASE);
}

void stage_fill(struct stage *stage)
{
	struct ring *rings[] = {&stage->transmit, &stage->receive};

	for (uint32_t i = 0; i < 2; i++) {
		if (rings[i]->queue && stage->packed)
			fill_packed(stage, rings[i]);
		else if (rings[i]->queue)
			fill_split(stage, rings[i]);
	}
}

/* ---- bringing it up ------------------------------------------------------------------------------- */

/* At the beginning every buffer is as if just returned: used.idx is size ahead of what VM1 has seen. */
static void ring_prime(const struct stage *stage, struct ring *ring)
{
	if (stage->packed) {
		ring->packed = (struct packed_desc *)ring->desc;
		ring->commit[0] = ring->commit[1] = POSITION_WRAP;
		((struct event *)ring->avail)->flags = EVENT_DISABLE;
		return;
	}
	for (uint32_t i = 0; i < stage->size; i++)
		ring->used->elements[i].id = i;
	ring->used->index = ring->avail->index = (uint16_t)stage->size;
}

static int ring_open(struct stage *stage, struct ring *ring, uint32_t number, bool receives)
{
	const uint64_t offset = number * (HUGE_PAGE / 2ull);
	struct rk_ring_config config = {
		.desc = BUS_BASE + offset,
		.avail = BUS_BASE + offset + (512u << 10),
		.used = BUS_BASE + offset + (640u << 10),
		.size = stage->size,
		.flags = RK_RING_ENABLED | RK_RING_EVENT_IDX | RK_RING_MERGEABLE |
			 (stage->packed ? RK_RING_PACKED : 0),
		.header_bytes = HEADER_BYTES,
		.call_fd = -1,
		.call_offset = -1,
		.commit = stage->packed ? (uintptr_t)ring->commit : 0,
	};

	ring->desc = (struct desc *)(stage->memory + offset);
	ring->avail = (struct avail *)(stage->memory + offset + (512u << 10));
	ring->used = (struct used *)(stage->memory + offset + (640u << 10));
	ring->first_slot = number * stage->size;
	ring->receives = receives;
	ring_prime(stage, ring);
	ring->queue = rk_queue_new(&config, stage->map, &ring->stats);
	return ring->queue ? 0 : -1;
}

static int map_open(struct stage *stage)
{
	uint32_t count = stage->regions + 1;
	struct rk_region *regions = calloc(count, sizeof(*regions));

	if (!regions)
		return -1;
	for (uint32_t i = 0; i < count; i++) {
		uint64_t bus, length = i ? stage->region_bytes : HUGE_PAGE;
		uint8_t *host = i ? region_at(stage, i - 1, &bus) : stage->memory;

		if (!i)
			bus = BUS_BASE;
		regions[i] = (struct rk_region){bus, length, (uintptr_t)host, RK_READ | RK_WRITE, 0};
	}
	stage->map = rk_map_new(regions, count);
	free(regions);
	return stage->map ? 0 : -1;
}

static uint64_t round_up(uint64_t value, uint64_t multiple)
{
	return (value + multiple - 1) / multiple * multiple;
}

static int memory_open(struct stage *stage)
{
	uint32_t slots = 2 * stage->size;
	uint64_t slot_bytes;

	/* An odd number of lines: buffers are shared out over the cache's sets. */
	stage->slot_bytes = ((HEADROOM + stage->frame_bytes + 127) / 64 | 1) * 64;
	slot_bytes = (uint64_t)((slots + stage->regions - 1) / stage->regions) * stage->slot_bytes;
	stage->region_bytes = round_up(slot_bytes, PAGE);
	stage->spare_lines = (stage->region_bytes - slot_bytes) / 64 + 1;
	stage->memory_bytes =
		round_up(HUGE_PAGE + stage->regions * stage->region_bytes, HUGE_PAGE);
	stage->memory = aligned_alloc(HUGE_PAGE, stage->memory_bytes);
	if (!stage->memory)
		return -1;
	/* As VM1's memory is to be; where it cannot, the small pages tell only of a memory table all over it. */
	madvise(stage->memory, stage->memory_bytes, MADV_HUGEPAGE);
	memset(stage->memory, 0, stage->memory_bytes);
	return map_open(stage);
}

/* Where the port's VF fills VM1's buffers itself, it does. */
static int direct_begin(struct stage *stage)
{
	if (!stage->port->ops->direct)
		return 0;
	rk_port_set_direct(stage->port, 1);
	return rk_queue_set_direct(stage->receive.queue, stage->port) ? 0 : -1;
}

/* kind: "null", "copy", "held" (VM1 sends), "gen", "direct" (it receives) or "loop" (both). NULL with errno. */
struct stage *stage_new(const char *kind, uint32_t frame_bytes, uint32_t size, uint32_t burst,
			uint32_t regions, uint32_t packed)
{
	bool sends = strcmp(kind, "gen") && strcmp(kind, "direct");
	bool receives = !sends || !strcmp(kind, "loop");
	struct stage *stage = calloc(1, sizeof(*stage));

	if (!stage)
		return NULL;
	stage->frame_bytes = frame_bytes;
	stage->size = size;
	stage->burst = burst;
	stage->regions = regions;
	stage->packed = packed;
	stage->port = stage_port_open(kind, frame_bytes);
	if (!stage->port || memory_open(stage) ||
	    (sends && ring_open(stage, &stage->transmit, 0, false)) ||
	    (receives && ring_open(stage, &stage->receive, 1, true)) || direct_begin(stage)) {
		stage_free(stage);
		return NULL;
	}
	stage->work = (struct rk_work){
		.tx = stage->transmit.queue, .rx = stage->receive.queue, .port = stage->port};
	return stage;
}

void stage_free(struct stage *stage)
{
	rk_queue_free(stage->transmit.queue);
	rk_queue_free(stage->receive.queue);
	if (stage->port)
		stage->port->ops->close(stage->port);
	rk_map_free(stage->map);
	free(stage->memory);
	free(stage);
}

/* ---- the kernel ----------------------------------------------------------------------------------- */

/* Turns until nothing is left; the packets forwarded since the beginning, of both directions. */
uint64_t stage_work(struct stage *stage)
{
	while (rk_work_turn(&stage->work, stage->burst))
		continue;
	return stage->transmit.stats.packets + stage->receive.stats.packets;
}

/* TSC cycles of the kernel's turns since the beginning. */
uint64_t stage_cycles(const struct stage *stage)
{
	return stage->transmit.stats.cycles + stage->receive.stats.cycles;
}

/* Translates the address of every buffer so many times; how many translations that were. */
uint64_t stage_translate(struct stage *stage, uint32_t rounds)
{
	uint64_t bus, run;

	for (uint32_t round = 0; round < rounds; round++)
		for (uint32_t slot = 0; slot < stage->size; slot++) {
			slot_at(stage, slot, &bus);
			stage->sink += rk_map_translate(stage->map, bus, stage->frame_bytes, RK_READ,
							&run);
		}
	return (uint64_t)rounds * stage->size;
}

int main(int count, char **words)
{
	struct stage *stage;
	uint64_t packets = 0;

	if (count != 8) {
		fprintf(stderr, "usage: stage KIND FRAME_BYTES QUEUE_SIZE BURST REGIONS PACKED ROUNDS\n");
		return 2;
	}
	bool translates = !strcmp(words[1], "translate");
	uint32_t rounds = (uint32_t)atoi(words[7]);

	stage = stage_new(translates ? "null" : words[1], (uint32_t)atoi(words[2]),
			  (uint32_t)atoi(words[3]), (uint32_t)atoi(words[4]),
			  (uint32_t)atoi(words[5]), (uint32_t)atoi(words[6]));
	if (!stage) {
		fprintf(stderr, "stage: cannot begin: %s\n", strerror(errno));
		return 1;
	}
	for (uint32_t round = 0; round < rounds && !translates; round++) {
		stage_fill(stage);
		packets = stage_work(stage);
	}
	if (translates)
		packets = stage_translate(stage, rounds);
	printf("%llu\n", (unsigned long long)packets);
	stage_free(stage);
	return 0;
}
