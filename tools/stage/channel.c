/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "channel.h"

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
#define RING_PLACES 16u

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

/* ---- VM1 ---------------------------------------------------------------------------------------- */

/* Region 0 has the rings; those with slots leave holes as large as themselves. */
static uint8_t *region_at(const struct channel *channel, uint64_t region, uint64_t *bus)
{
	*bus = BUS_BASE + HUGE_PAGE + 2 * region * channel->region_bytes;
	return channel->memory + HUGE_PAGE + region * channel->region_bytes;
}

/* Slots go round the regions, a run in each. They begin at another line of each: one line of all pages is one set of the cache. */
uint8_t *channel_slot(const struct channel *channel, uint32_t slot, uint64_t *bus)
{
	const uint32_t runs = slot / channel->run, lap = runs / channel->regions;
	uint64_t region = runs % channel->regions;
	uint64_t offset = (lap * channel->run + slot % channel->run) * channel->slot_bytes;
	uint8_t *base = region_at(channel, region, bus);

	offset += region * 5 % channel->spare_lines * 64;
	*bus += offset;
	return base + offset;
}

/* Writes a buffer's frame anew, or reads what is in it; its bus address, header included. */
static uint64_t touch(struct channel *channel, struct ring *ring, uint32_t id, uint16_t index)
{
	uint32_t bytes = channel->frame_bytes < TOUCHED ? channel->frame_bytes : TOUCHED;
	uint64_t bus, word = 0, words[TOUCHED / 8];
	uint8_t *frame = channel_slot(channel, ring->first_slot + id, &bus) + HEADROOM;

	if (ring->receives) {
		memcpy(words, frame, bytes);
		for (uint32_t i = 0; i < bytes / 8; i++)
			word += words[i];
		channel->sink += word;
	} else {
		memset(frame - HEADER_BYTES, 0, HEADER_BYTES);
		for (uint32_t i = 0; i < TOUCHED / 8; i++)
			words[i] = index + i;
		memcpy(frame, words, bytes);
	}
	return bus + HEADROOM - HEADER_BYTES;
}

/* A full ring's next descriptor to make available is the oldest one the kernel has used. */
static void fill_packed(struct channel *channel, struct ring *ring)
{
	for (uint32_t done = 0; done < channel->size; done++) {
		bool lap = ring->place < channel->size;
		struct packed_desc *desc = &ring->packed[ring->place % channel->size];
		uint16_t flags = __atomic_load_n(&desc->flags, __ATOMIC_ACQUIRE);
		uint32_t id = ring->primed ? desc->id % channel->size : done;

		/* Used in the lap before, whose wrap counter was the other one. */
		if (ring->primed && (flags & PACKED_MARKS) != (lap ? 0 : PACKED_MARKS))
			return;
		desc->address = touch(channel, ring, id, (uint16_t)ring->place);
		desc->length = HEADER_BYTES + channel->frame_bytes;
		desc->id = (uint16_t)id;
		flags = (lap ? PACKED_AVAIL : PACKED_USED) | (ring->receives ? DESC_WRITE : 0);
		__atomic_store_n(&desc->flags, flags, __ATOMIC_RELEASE);
		ring->place = (ring->place + 1) % (2 * channel->size);
	}
	ring->primed = true;
}

static void fill_split(struct channel *channel, struct ring *ring)
{
	const uint32_t mask = channel->size - 1;
	uint16_t used = __atomic_load_n(&ring->used->index, __ATOMIC_ACQUIRE);
	uint16_t index = ring->avail->index;

	for (; ring->seen != used; ring->seen++, index++) {
		uint32_t id = ring->used->elements[ring->seen & mask].id & mask;
		uint64_t bus = touch(channel, ring, id, index);

		ring->desc[id] = (struct desc){bus, HEADER_BYTES + channel->frame_bytes,
					       ring->receives ? DESC_WRITE : 0, 0};
		ring->avail->entries[index & mask] = (uint16_t)id;
	}
	/* 2.7.7.2: no interrupt before so many more. */
	ring->avail->entries[channel->size] = (uint16_t)(used + 0x7fff);
	__atomic_store_n(&ring->avail->index, index, __ATOMIC_RELEASE);
}

void channel_fill(struct channel *channel)
{
	struct ring *rings[] = {&channel->transmit, &channel->receive};

	for (uint32_t i = 0; i < 2; i++) {
		if (rings[i]->queue && channel->packed)
			fill_packed(channel, rings[i]);
		else if (rings[i]->queue)
			fill_split(channel, rings[i]);
	}
}

/* ---- bringing it up ------------------------------------------------------------------------------- */

/* At the beginning every buffer is as if just returned: used.idx is size ahead of what VM1 has seen. */
static void ring_prime(const struct channel *channel, struct ring *ring)
{
	if (channel->packed) {
		ring->packed = (struct packed_desc *)ring->desc;
		ring->commit[0] = ring->commit[1] = POSITION_WRAP;
		((struct event *)ring->avail)->flags = EVENT_DISABLE;
		return;
	}
	for (uint32_t i = 0; i < channel->size; i++)
		ring->used->elements[i].id = i;
	ring->used->index = ring->avail->index = (uint16_t)channel->size;
}

static bool ring_open(struct channel *channel, struct ring *ring, uint32_t number, bool receives)
{
	const uint64_t offset = number * (HUGE_PAGE / 2ull) + channel->ring_offset;
	struct rk_ring_config config = {
		.desc = BUS_BASE + offset,
		.avail = BUS_BASE + offset + (512u << 10),
		.used = BUS_BASE + offset + (640u << 10),
		.size = channel->size,
		.flags = RK_RING_ENABLED | RK_RING_EVENT_IDX | RK_RING_MERGEABLE |
			 (channel->packed ? RK_RING_PACKED : 0),
		.header_bytes = HEADER_BYTES,
		.call_fd = -1,
		.call_offset = -1,
		.commit = channel->packed ? (uintptr_t)ring->commit : 0,
	};

	ring->desc = (struct desc *)(channel->memory + offset);
	ring->avail = (struct avail *)(channel->memory + offset + (512u << 10));
	ring->used = (struct used *)(channel->memory + offset + (640u << 10));
	ring->first_slot = number * channel->size;
	ring->receives = receives;
	ring_prime(channel, ring);
	ring->queue = rk_queue_new(&config, channel->map, &ring->stats);
	return ring->queue != NULL;
}

static bool map_open(struct channel *channel)
{
	uint32_t count = channel->regions + 1;
	struct rk_region *regions = calloc(count, sizeof(*regions));

	if (!regions)
		return false;
	for (uint32_t i = 0; i < count; i++) {
		uint64_t bus, length = i ? channel->region_bytes : HUGE_PAGE;
		uint8_t *host = i ? region_at(channel, i - 1, &bus) : channel->memory;

		if (!i)
			bus = BUS_BASE;
		regions[i] = (struct rk_region){bus, length, (uintptr_t)host, RK_READ | RK_WRITE, 0};
	}
	channel->map = rk_map_new(regions, count);
	free(regions);
	return channel->map != NULL;
}

static uint64_t round_up(uint64_t value, uint64_t multiple)
{
	return (value + multiple - 1) / multiple * multiple;
}

static bool memory_open(struct channel *channel)
{
	uint32_t slots = 2 * channel->size, lap = channel->regions * channel->run;
	uint64_t slot_bytes;

	/* An odd number of lines: buffers are shared out over the cache's sets. */
	channel->slot_bytes = ((HEADROOM + channel->frame_bytes + 127) / 64 | 1) * 64;
	slot_bytes = (uint64_t)((slots + lap - 1) / lap) * channel->run * channel->slot_bytes;
	channel->region_bytes = round_up(slot_bytes, PAGE);
	channel->spare_lines = (channel->region_bytes - slot_bytes) / 64 + 1;
	channel->memory_bytes =
		round_up(HUGE_PAGE + channel->regions * channel->region_bytes, HUGE_PAGE);
	channel->memory = aligned_alloc(HUGE_PAGE, channel->memory_bytes);
	if (!channel->memory)
		return false;
	/* As VM1's memory is to be; where it cannot, the small pages tell only of a memory table all over it. */
	madvise(channel->memory, channel->memory_bytes, MADV_HUGEPAGE);
	memset(channel->memory, 0, channel->memory_bytes);
	return map_open(channel);
}

/* Where the port's VF fills VM1's buffers itself, it does. */
static bool direct_begin(struct channel *channel)
{
	if (!channel->port->ops->direct)
		return true;
	rk_port_set_direct(channel->port, 1);
	return rk_queue_set_direct(channel->receive.queue, channel->port);
}

bool channel_open(struct channel *channel, const char *kind, uint32_t frame_bytes, uint32_t size,
		  uint32_t regions, uint32_t run, bool packed, uint32_t number,
		  struct stage_end *end)
{
	const bool both = !strcmp(kind, "loop") || !strcmp(kind, "counted");
	const bool receives = both || !strcmp(kind, "gen") || !strcmp(kind, "direct");
	const bool sends = both || !receives;

	*channel = (struct channel){
		.frame_bytes = frame_bytes,
		.size = size,
		.regions = regions,
		.run = run,
		.packed = packed,
		.ring_offset = number % RING_PLACES * PAGE,
		.port = stage_port_open(kind, frame_bytes, end),
	};
	if (!channel->port || !memory_open(channel) ||
	    (sends && !ring_open(channel, &channel->transmit, 0, false)) ||
	    (receives && !ring_open(channel, &channel->receive, 1, true)) || !direct_begin(channel))
		return false;
	channel->work = (struct rk_work){
		.tx = channel->transmit.queue,
		.rx = channel->receive.queue,
		.port = channel->port,
		.wake_fd = -1,
	};
	return true;
}

void channel_close(struct channel *channel)
{
	rk_queue_free(channel->transmit.queue);
	rk_queue_free(channel->receive.queue);
	if (channel->port)
		channel->port->ops->close(channel->port);
	rk_map_free(channel->map);
	free(channel->memory);
}
