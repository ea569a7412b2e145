/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One lcore for tools/stage/lcores.py: a loop over one channel, laid out as the daemon's are. Its VM1 is the same
 * thread, which fills the rings between the loop's runs, so that no VM1 has to wait for a CPU.
 */
#include <stdlib.h>
#include <string.h>

#include "../../pmd/csrc/wait.h"
#include "channel.h"

#define LINES 128u /* pmd/own_lines.py */
#define RUN_NS 500u
#define STAGE_API __attribute__((visibility("default")))

struct lcore {
	struct channel channel;
	_Alignas(LINES) struct rk_work work;
	_Alignas(LINES) struct rk_loop_stats stats;
	_Alignas(LINES) uint32_t generation;
	_Alignas(LINES) uint64_t heartbeat;
	_Alignas(LINES) uint64_t met; /* how often it has come to where the other one is waited for */
	_Alignas(LINES) struct rk_loop *loop;
	uint64_t a_round; /* packets */
};

/* What a slice was. */
struct lcore_slice {
	uint64_t packets;
	uint64_t cycles;  /* TSC, of the loop's rounds that moved something */
	uint64_t longest; /* TSC cycles until the rings of one filling were empty */
};

STAGE_API void lcore_free(struct lcore *lcore);
STAGE_API struct lcore *lcore_new(const char *kind, uint32_t size, uint32_t burst, uint32_t packed,
				  uint32_t number);
STAGE_API uint32_t lcore_run(struct lcore *lcore, struct lcore *other, uint32_t rounds,
			     struct lcore_slice *slice);

void lcore_free(struct lcore *lcore)
{
	rk_loop_free(lcore->loop);
	channel_close(&lcore->channel);
	free(lcore);
}

/* kind: the kernel's "null", "copy", "gen" or "loop", of 64 bytes. number: which of the lcores. NULL with errno. */
struct lcore *lcore_new(const char *kind, uint32_t size, uint32_t burst, uint32_t packed,
			uint32_t number)
{
	struct lcore *lcore = aligned_alloc(LINES, sizeof(*lcore));

	if (!lcore)
		return NULL;
	memset(lcore, 0, sizeof(*lcore));
	lcore->loop = rk_loop_new(burst, &lcore->stats);
	if (!lcore->loop ||
	    !channel_open(&lcore->channel, kind, 64, size, 1, 1, packed, number, NULL)) {
		lcore_free(lcore);
		return NULL;
	}
	lcore->work = lcore->channel.work;
	lcore->work.generation = &lcore->generation;
	lcore->work.heartbeat = &lcore->heartbeat;
	lcore->a_round = size * (lcore->work.tx && lcore->work.rx ? 2u : 1u);
	rk_loop_set(lcore->loop, &lcore->work, 1);
	return lcore;
}

/* Goes on once the other one has come here as often. */
static void meet(struct lcore *lcore, const struct lcore *other)
{
	const uint64_t times = lcore->met + 1;

	__atomic_store_n(&lcore->met, times, __ATOMIC_RELEASE);
	while (__atomic_load_n(&other->met, __ATOMIC_ACQUIRE) < times)
		relax();
}

static uint64_t packets(const struct lcore *lcore)
{
	return lcore->channel.transmit.stats.packets + lcore->channel.receive.stats.packets;
}

/* Lets the loop run, as long as it takes, until the rings are empty. False: it has an event. */
static bool empty(struct lcore *lcore, struct lcore_slice *slice)
{
	const uint64_t goal = packets(lcore) + lcore->a_round;
	const uint64_t begin = lcore->stats.cycles;
	uint64_t took;

	while (packets(lcore) < goal)
		if (rk_loop_run(lcore->loop, RUN_NS) != RK_EVENT_BUDGET)
			return false;
	took = lcore->stats.cycles - begin;
	if (took > slice->longest)
		slice->longest = took;
	return true;
}

/*
 * Fills and empties the rings so many times; other: the lcore that does the same on another thread, each time
 * beginning to empty at the same moment; NULL: it is alone. False: a ring is at fault.
 */
uint32_t lcore_run(struct lcore *lcore, struct lcore *other, uint32_t rounds,
		   struct lcore_slice *slice)
{
	const uint64_t before = packets(lcore), busy = lcore->stats.busy_cycles;
	bool sound = true;

	slice->longest = 0;
	for (uint32_t round = 0; round < rounds; round++) {
		channel_fill(&lcore->channel);
		if (other)
			meet(lcore, other);
		sound = sound && empty(lcore, slice);
	}
	slice->packets = packets(lcore) - before;
	slice->cycles = lcore->stats.busy_cycles - busy;
	return sound;
}
