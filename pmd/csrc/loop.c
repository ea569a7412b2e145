/* SPDX-License-Identifier: BSD-3-Clause */
/* The poll loop of one lcore. */
#include "lines.h"
#include "missing.h"
#include "patch.h"
#include "roster.h"
#include "turn.h"
#include "wait.h"
#include "works.h"

#define BEAT_NS 10000000ull
/* docs/device.md 5.5 asks for a heartbeat each 100 ms, of a loop that sleeps too. */
#define SLEEP_NS 40000000ull
#define NAP_NS 50000ull
#define TRUSTING_NS 600000000000ull

struct rk_loop {
	struct rk_work *works;
	struct roster roster;
	struct rk_loop_stats *stats;
	uint32_t count;
	uint32_t burst;
	uint32_t stop; /* set from any thread */
	uint32_t asleep; /* 1: stop has to wake it */
	bool may_sleep, must_look; /* a work of it can only be polled */
	bool busy; /* the last round moved something */
	uint64_t clock; /* TSC cycles: when the last turn ended that moved something, or was the last look in vain */
	uint64_t idle, coalesce;   /* TSC cycles */
	uint64_t moved;            /* when something last did, be it in an earlier run */
	bool trusting; /* its sleeps have no end of their own */
	struct waiter waiter;
};

static uint64_t cycles_of(uint64_t ns)
{
	return (uint64_t)((double)ns * (double)rk_tsc_hz() / 1e9);
}

/* PMD_KERNEL_TRUST_WAKES=1: no sleep ends by itself, so that a wake-up that is lost is lost for good and seen. */
static bool trust_wanted(void)
{
	const char *said = getenv("PMD_KERNEL_TRUST_WAKES");

	return said && strcmp(said, "1") == 0;
}

struct rk_loop *rk_loop_new(uint32_t burst, struct rk_loop_stats *stats)
{
	struct rk_loop *loop = lines_zeroed(1, sizeof(*loop));

	if (!loop)
		return NULL;
	loop->burst = burst == 0 ? 1 : burst > RK_BURST_MAX ? RK_BURST_MAX : burst;
	loop->stats = stats;
	loop->trusting = trust_wanted();
	roster_open(&loop->roster, NULL, 0);
	if (waiter_open(&loop->waiter) == 0)
		return loop;
	free(loop);
	return NULL;
}

void rk_loop_free(struct rk_loop *loop)
{
	if (loop)
		waiter_close(&loop->waiter);
	free(loop);
}

void rk_loop_poll(struct rk_loop *loop, const struct rk_poll *poll)
{
	loop->may_sleep = poll->may_sleep;
	loop->idle = cycles_of(poll->idle_ns);
	loop->coalesce = cycles_of(poll->coalesce_ns);
	works_coalesce(loop->works, loop->count, loop->coalesce);
}

/* Watches fd; without it the work has to be looked at. */
static void watch(struct rk_loop *loop, int fd)
{
	if (fd < 0 || !waiter_watch(&loop->waiter, fd))
		loop->must_look = true;
}

void rk_loop_set(struct rk_loop *loop, struct rk_work *works, uint32_t count)
{
	/* Without a descriptor to wait with, it wakes for those of before too, and looks by itself. */
	loop->must_look = waiter_clear(&loop->waiter) != 0;
	patch_part(loop->works, loop->count);
	patch_join(works, count);
	roster_open(&loop->roster, works, count);
	loop->works = works;
	loop->count = count;
	works_coalesce(loop->works, loop->count, loop->coalesce);
	for (uint32_t i = 0; i < count; i++) {
		const struct rk_work *work = &works[i];

		if (work->tx)
			watch(loop, work->tx->kick_fd);
		if (work->rx)
			watch(loop, work->rx->kick_fd);
		if (work->generation)
			watch(loop, work->wake_fd);
		if (work->port->wake_fd != RK_WAKE_NONE)
			watch(loop, work->port->wake_fd == RK_WAKE_POLL ? -1 : work->port->wake_fd);
	}
}

void rk_loop_stop(struct rk_loop *loop)
{
	__atomic_store_n(&loop->stop, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&loop->asleep, __ATOMIC_SEQ_CST))
		waiter_wake(&loop->waiter);
}

/* Both directions of a queue pair, each unless it is quarantined or absent. */
static inline uint32_t work_turn(struct rk_work *work, uint32_t burst, uint64_t *clock)
{
	uint32_t done = 0;

	if (work->tx && work->tx->fault == RK_FAULT_NONE) {
		done += dequeue_turn(work->tx, work->port, burst, clock);
		if (work->tx->fault != RK_FAULT_NONE)
			work->events |= missing_or_fault(work->tx);
	}
	if (work->rx && !work->port->ops->rx) {
		/* Another work's turn writes it, or its own transmit turn. */
		if (work->rx->fault != RK_FAULT_NONE)
			work->events |= missing_or_fault(work->rx);
	} else if (work->rx && work->rx->fault == RK_FAULT_NONE) {
		done += enqueue_turn(work->rx, work->port, burst, clock);
		if (work->rx->fault != RK_FAULT_NONE)
			work->events |= missing_or_fault(work->rx);
		if (work->rx->asks)
			work->events |= work->rx->asks;
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

static inline uint32_t poll_work(struct rk_work *work, uint32_t burst, uint64_t *clock)
{
	uint32_t done;

	if (work->generation &&
	    __atomic_load_n(work->generation, __ATOMIC_ACQUIRE) != work->expected) {
		work->events |= RK_EVENT_GENERATION;
		return 0;
	}
	done = work_turn(work, burst, clock);
	if (work->fault && __atomic_load_n(work->fault, __ATOMIC_RELAXED))
		window_gone(work);
	return done;
}

uint32_t rk_work_turn(struct rk_work *work, uint32_t burst)
{
	uint64_t clock;

	patch_join_loop(work);
	clock = cycles_now();
	return poll_work(work, burst > RK_BURST_MAX ? RK_BURST_MAX : burst, &clock);
}

uint32_t rk_work_drain(struct rk_work *work)
{
	if (work->rx && work->rx->receives == RECEIVES_DIRECT && work->rx->fault == RK_FAULT_NONE)
		direct_drain(work->rx, work->port);
	if (!work->tx || !work->port->ops->reclaim)
		return 0;
	return dequeue_drain(work->tx, work->port);
}

/* Frames that a port can have, by as many as it shows at once, at the worst. */
#define REST_TURNS 512u

void rk_work_take_rest(struct rk_work *work)
{
	uint64_t clock = cycles_now();

	if (!work->rx || !work->port->ops->direct)
		return;
	work->port->ops->direct->halt(work->port);
	for (uint32_t i = 0; i < REST_TURNS && work->rx->fault == RK_FAULT_NONE; i++)
		if (enqueue_turn(work->rx, work->port, RK_BURST_MAX, &clock) == 0)
			break;
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

/* ---- rounds ------------------------------------------------------------------------------------- */

/*
 * Whether the work moved something. One with an event is left alone. What was looked at in vain costs the next
 * turn that moves something where it is charged, and no cycles are read for it; else nobody.
 */
static inline bool ask(struct rk_loop *loop, struct rk_work *work, bool charged, uint32_t *events)
{
	const uint64_t before = loop->clock;
	bool moved;

	if (work->events)
		return false;
	moved = poll_work(work, loop->burst, &loop->clock) != 0;
	if (loop->clock == before && !charged)
		loop->clock = cycles_now();
	*events |= work->events;
	return moved;
}

/* One round over the works; returns the events that came up. */
static inline uint32_t round_once(struct rk_loop *loop)
{
	struct roster *roster = &loop->roster;
	uint32_t events = 0, turns;
	uint16_t *link = &roster->awake;
	bool busy = false;

	roster_fetch(roster);
	while (*link != NOBODY) {
		const uint16_t number = *link;
		struct rk_work *work = &loop->works[number];

		if (ask(loop, work, false, &events)) {
			work->idle = 0;
			busy = true;
		} else if (work->idle < IDLE_ROUNDS) {
			work->idle++;
		} else {
			*link = work->next;
			roster_doze(roster, number);
			continue;
		}
		link = &work->next;
	}
	for (turns = roster_turns(roster); turns; turns--) {
		const uint16_t number = roster_turn(roster);

		if (ask(loop, &loop->works[number], busy, &events)) {
			roster_wake(roster, number);
			busy = true;
		} else {
			roster_doze(roster, number);
		}
	}
	loop->busy = busy;
	return events;
}

/*
 * Sleeps until something happens, or for at most ns. All that could be seen was seen, VM1 has been told of
 * all: after arm() nothing is new that no edge comes for.
 */
static void sleep_for(struct rk_loop *loop, uint64_t ns)
{
	const uint64_t start = loop->clock;
	uint64_t limit = loop->trusting ? TRUSTING_NS : SLEEP_NS;
	uint32_t found;

	works_call_due(loop->works, loop->count, UINT64_MAX);
	__atomic_store_n(&loop->asleep, 1, __ATOMIC_SEQ_CST);
	found = works_arm(loop->works, loop->count);
	if (found & RK_ERRAND || loop->must_look || works_wait(loop->works, loop->count))
		limit = NAP_NS;
	if (!(found & RK_NEWS) && !__atomic_load_n(&loop->stop, __ATOMIC_SEQ_CST))
		waiter_sleep(&loop->waiter, ns < limit && !loop->trusting ? ns : limit);
	__atomic_store_n(&loop->asleep, 0, __ATOMIC_RELAXED);
	works_disarm(loop->works, loop->count);
	loop->clock = cycles_now();
	loop->stats->sleeps++;
	loop->stats->slept_cycles += loop->clock - start;
}

uint32_t rk_loop_run(struct rk_loop *loop, uint64_t budget_ns)
{
	struct rk_loop_stats *stats = loop->stats;
	const uint64_t start = cycles_now(), begun = stats->cycles - start;
	const uint64_t end = start + cycles_of(budget_ns), beat_cycles = cycles_of(BEAT_NS);
	uint64_t moved = loop->moved, beat_at = start;
	uint32_t events = 0;

	loop->clock = start;
	while (!events) {
		const uint64_t last = loop->clock;
		uint64_t now;

		events = round_once(loop);
		stats->turns++;
		if (loop->busy) {
			stats->busy_turns++;
			stats->busy_cycles += loop->clock - last;
			moved = loop->clock;
		} else if (loop->may_sleep && !events && loop->clock - moved >= loop->idle) {
			sleep_for(loop, budget_ns);
		} else {
			relax();
			loop->clock = cycles_now();
		}
		now = loop->clock;
		stats->cycles = begun + now; /* read by others while a run goes on */
		if (loop->coalesce)
			works_call_due(loop->works, loop->count, now);
		if (__atomic_load_n(&loop->stop, __ATOMIC_RELAXED) &&
		    __atomic_exchange_n(&loop->stop, 0, __ATOMIC_ACQUIRE))
			events |= RK_EVENT_STOP;
		if (now >= beat_at) {
			beat(loop);
			beat_at = now + beat_cycles;
		}
		if (now >= end)
			events |= RK_EVENT_BUDGET;
	}
	loop->moved = moved;
	if (loop->coalesce)
		works_call_due(loop->works, loop->count, UINT64_MAX);
	stats->cycles = begun + cycles_now();
	return events;
}
