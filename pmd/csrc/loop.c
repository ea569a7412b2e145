/* SPDX-License-Identifier: BSD-3-Clause */
/* The poll loop of one lcore. */
#include "turn.h"

#include <stdlib.h>

/* The clock, the budget and the heartbeats are looked at every so many rounds. */
#define ROUNDS_PER_LOOK 64u

struct rk_loop {
	struct rk_work *works;
	struct rk_loop_stats *stats;
	uint32_t count;
	uint32_t burst;
	uint32_t stop; /* set from any thread */
};

static inline void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

struct rk_loop *rk_loop_new(uint32_t burst, struct rk_loop_stats *stats)
{
	struct rk_loop *loop = calloc(1, sizeof(*loop));

	if (!loop)
		return NULL;
	loop->burst = burst == 0 ? 1 : burst > RK_BURST_MAX ? RK_BURST_MAX : burst;
	loop->stats = stats;
	return loop;
}

void rk_loop_free(struct rk_loop *loop)
{
	free(loop);
}

void rk_loop_set(struct rk_loop *loop, struct rk_work *works, uint32_t count)
{
	loop->works = works;
	loop->count = count;
}

void rk_loop_stop(struct rk_loop *loop)
{
	__atomic_store_n(&loop->stop, 1, __ATOMIC_RELEASE);
}

/* Both directions of a queue pair, each unless it is quarantined or absent. */
static inline uint32_t work_turn(struct rk_work *work, uint32_t burst)
{
	uint32_t done = 0;

	if (work->tx && work->tx->fault == RK_FAULT_NONE) {
		done += dequeue_turn(work->tx, work->port, burst);
		if (work->tx->fault != RK_FAULT_NONE)
			work->events |= RK_EVENT_FAULT;
	}
	if (work->rx && work->rx->fault == RK_FAULT_NONE) {
		done += enqueue_turn(work->rx, work->port, burst);
		if (work->rx->fault != RK_FAULT_NONE)
			work->events |= RK_EVENT_FAULT;
	}
	return done;
}

/* The window's memory went away: what was read since is zeros, and the rings are not VM1's any more. */
static void window_gone(struct rk_work *work)
{
	if (work->tx)
		work->tx->fault = RK_FAULT_WINDOW;
	if (work->rx)
		work->rx->fault = RK_FAULT_WINDOW;
	work->events |= RK_EVENT_FAULT;
}

static inline uint32_t poll_work(struct rk_work *work, uint32_t burst)
{
	uint32_t done;

	if (work->generation &&
	    __atomic_load_n(work->generation, __ATOMIC_ACQUIRE) != work->expected) {
		work->events |= RK_EVENT_GENERATION;
		return 0;
	}
	done = work_turn(work, burst);
	if (work->fault && __atomic_load_n(work->fault, __ATOMIC_RELAXED))
		window_gone(work);
	return done;
}

uint32_t rk_work_turn(struct rk_work *work, uint32_t burst)
{
	return poll_work(work, burst > RK_BURST_MAX ? RK_BURST_MAX : burst);
}

uint32_t rk_work_drain(struct rk_work *work)
{
	if (!work->tx || !work->port->ops->reclaim)
		return 0;
	return dequeue_drain(work->tx, work->port);
}

static void beat(struct rk_loop *loop)
{
	for (uint32_t i = 0; i < loop->count; i++) {
		uint64_t *heartbeat = loop->works[i].heartbeat;

		/* Queue pairs of one channel on several lcores share it: any change will do. */
		if (heartbeat)
			__atomic_store_n(heartbeat, *heartbeat + 1, __ATOMIC_RELAXED);
	}
}

/* One round over the works; returns the events that came up. */
static inline uint32_t round_once(struct rk_loop *loop, bool *busy)
{
	uint32_t events = 0;

	*busy = false;
	for (uint32_t i = 0; i < loop->count; i++) {
		struct rk_work *work = &loop->works[i];

		if (work->events)
			continue;
		if (poll_work(work, loop->burst))
			*busy = true;
		events |= work->events;
	}
	return events;
}

uint32_t rk_loop_run(struct rk_loop *loop, uint64_t budget_ns)
{
	struct rk_loop_stats *stats = loop->stats;
	const uint64_t start = cycles_now();
	const uint64_t budget = (uint64_t)((double)budget_ns * (double)rk_tsc_hz() / 1e9);
	uint64_t last = start;
	uint32_t events = 0;

	for (uint32_t round = 1; !events; round++) {
		bool busy;
		uint64_t now;

		events = round_once(loop, &busy);
		now = cycles_now();
		stats->turns++;
		if (busy) {
			stats->busy_turns++;
			stats->busy_cycles += now - last;
		} else {
			relax();
		}
		last = now;
		if (__atomic_load_n(&loop->stop, __ATOMIC_RELAXED) &&
		    __atomic_exchange_n(&loop->stop, 0, __ATOMIC_ACQUIRE))
			events |= RK_EVENT_STOP;
		if (round % ROUNDS_PER_LOOK == 0) {
			beat(loop);
			if (now - start >= budget)
				events |= RK_EVENT_BUDGET;
		}
	}
	stats->cycles += cycles_now() - start;
	return events;
}
