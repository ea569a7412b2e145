/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The kernel's stages by themselves: one channel (channel.h), or several in a loop, of which some are idle.
 *
 * stage_fill() is VM1: it takes back what was returned and makes every buffer available anew, each with
 * its descriptor, entry, header and first 64 bytes written. stage_work() is the kernel: it turns until
 * nothing is left. Both may be called from different threads, but not at once. As a program it does one
 * after the other and tells the packets; callgrind then counts what is inside stage_work() only.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "channel.h"

/* What a loop has of a channel's device: on pages of its own, as a state area is. */
struct device {
	_Alignas(4096) uint32_t generation;
	uint64_t heartbeat;
};

struct stage {
	uint32_t size, burst;
	uint32_t busy, count; /* channels */
	struct channel *channels;
	/* Of several channels, or one that is to be by a loop; else NULL. */
	struct rk_loop *loop;
	struct rk_loop_stats loop_stats;
	struct rk_work *works;
	struct device *devices;
	struct stage_end end;
};

#define STAGE_API __attribute__((visibility("default")))
#define BUDGET_NS 60000000000ull
#define WARM_UP 16u /* until idle works doze: roster.h */

STAGE_API struct stage *stage_new(const char *kind, uint32_t frame_bytes, uint32_t size,
				  uint32_t burst, uint32_t regions, uint32_t run,
				  uint32_t packed, uint32_t looped, uint32_t idle);
STAGE_API void stage_free(struct stage *stage);
STAGE_API void stage_fill(struct stage *stage);
STAGE_API uint64_t stage_work(struct stage *stage);
STAGE_API uint64_t stage_translate(struct stage *stage, uint32_t rounds);
STAGE_API uint64_t stage_cycles(const struct stage *stage);

static void *zeroed(size_t count, size_t bytes, size_t alignment)
{
	void *memory = aligned_alloc(alignment, (count * bytes / alignment + 1) * alignment);

	if (memory)
		memset(memory, 0, count * bytes);
	return memory;
}

/* Runs the loop until all that VM1s have made available is forwarded. */
static void loop_work(struct stage *stage)
{
	stage->end.left = (uint64_t)stage->busy * stage->size;
	rk_loop_run(stage->loop, BUDGET_NS);
}

/* Idle ones have stocked rings that nothing comes to, and nothing to send. */
static bool loop_open(struct stage *stage)
{
	stage->loop = rk_loop_new(stage->burst, &stage->loop_stats);
	stage->works = zeroed(stage->count, sizeof(*stage->works), 128);
	stage->devices = zeroed(stage->count, sizeof(*stage->devices), 4096);
	if (!stage->loop || !stage->works || !stage->devices)
		return false;
	stage->end.loop = stage->loop;
	for (uint32_t i = 0; i < stage->count; i++) {
		stage->works[i] = stage->channels[i].work;
		stage->works[i].generation = &stage->devices[i].generation;
		stage->works[i].heartbeat = &stage->devices[i].heartbeat;
		if (i < stage->busy)
			continue;
		channel_fill(&stage->channels[i]);
		while (rk_work_turn(&stage->works[i], stage->burst))
			continue;
	}
	rk_loop_set(stage->loop, stage->works, stage->count);
	for (uint32_t i = 0; i < WARM_UP; i++) {
		stage_fill(stage);
		loop_work(stage);
	}
	return true;
}

/*
 * kind: "null", "copy", "held" (VM1 sends), "gen", "direct" (it receives) or "loop" (both). looped: 0, one channel by
 * itself; else so many in a loop, and idle ones beside them: "null" only. NULL with errno.
 */
struct stage *stage_new(const char *kind, uint32_t frame_bytes, uint32_t size, uint32_t burst,
			uint32_t regions, uint32_t run, uint32_t packed, uint32_t looped,
			uint32_t idle)
{
	struct stage *stage = zeroed(1, sizeof(*stage), 128);

	if (!stage)
		return NULL;
	stage->size = size;
	stage->burst = burst;
	stage->busy = looped ? looped : 1;
	stage->count = stage->busy + idle;
	stage->channels = zeroed(stage->count, sizeof(*stage->channels), 128);
	for (uint32_t i = 0; stage->channels && i < stage->count; i++)
		if (!channel_open(&stage->channels[i], looped ? "counted" : kind, frame_bytes, size,
				  regions, run, packed, i, &stage->end)) {
			stage_free(stage);
			return NULL;
		}
	if (!stage->channels || (looped && !loop_open(stage))) {
		stage_free(stage);
		return NULL;
	}
	return stage;
}

void stage_free(struct stage *stage)
{
	rk_loop_free(stage->loop);
	for (uint32_t i = 0; stage->channels && i < stage->count; i++)
		channel_close(&stage->channels[i]);
	free(stage->channels);
	free(stage->works);
	free(stage->devices);
	free(stage);
}

void stage_fill(struct stage *stage)
{
	for (uint32_t i = 0; i < stage->busy; i++)
		channel_fill(&stage->channels[i]);
}

static uint64_t stage_packets(const struct stage *stage)
{
	uint64_t packets = 0;

	for (uint32_t i = 0; i < stage->busy; i++)
		packets += stage->channels[i].transmit.stats.packets +
			   stage->channels[i].receive.stats.packets;
	return packets;
}

/* Turns until nothing is left; the packets forwarded since the beginning, of both directions. */
__attribute__((noinline)) uint64_t stage_work(struct stage *stage)
{
	if (stage->loop) {
		loop_work(stage);
	} else {
		while (rk_work_turn(&stage->channels[0].work, stage->burst))
			continue;
	}
	return stage_packets(stage);
}

/* TSC cycles of the kernel's turns since the beginning; of a loop, of its rounds that moved something. */
uint64_t stage_cycles(const struct stage *stage)
{
	const struct channel *channel = &stage->channels[0];

	if (stage->loop)
		return stage->loop_stats.busy_cycles;
	return channel->transmit.stats.cycles + channel->receive.stats.cycles;
}

/* Translates the address of every buffer so many times; how many translations that were. */
uint64_t stage_translate(struct stage *stage, uint32_t rounds)
{
	struct channel *channel = &stage->channels[0];
	uint64_t bus, run;

	for (uint32_t round = 0; round < rounds; round++)
		for (uint32_t slot = 0; slot < stage->size; slot++) {
			channel_slot(channel, slot, &bus);
			channel->sink += rk_map_translate(channel->map, bus, channel->frame_bytes,
							  RK_READ, &run);
		}
	return (uint64_t)rounds * stage->size;
}

int main(int count, char **words)
{
	struct stage *stage;
	uint64_t packets = 0;
	uint32_t numbers[9] = {0};

	if (count != 11) {
		fprintf(stderr, "usage: stage KIND FRAME_BYTES QUEUE_SIZE BURST REGIONS RUN "
				"PACKED LOOPED IDLE ROUNDS\n");
		return 2;
	}
	for (uint32_t i = 0; i < 9; i++)
		numbers[i] = (uint32_t)atoi(words[2 + i]);
	bool translates = !strcmp(words[1], "translate");
	uint32_t rounds = numbers[8];

	stage = stage_new(translates ? "null" : words[1], numbers[0], numbers[1], numbers[2],
			  numbers[3], numbers[4], numbers[5], numbers[6], numbers[7]);
	if (!stage) {
		fprintf(stderr, "stage: cannot begin: %s\n", strerror(errno));
		return 1;
	}
	const uint64_t before = stage_packets(stage);

	for (uint32_t round = 0; round < rounds && !translates; round++) {
		stage_fill(stage);
		packets = stage_work(stage);
	}
	packets -= before;
	if (translates)
		packets = stage_translate(stage, rounds);
	printf("%llu\n", (unsigned long long)packets);
	stage_free(stage);
	return 0;
}
