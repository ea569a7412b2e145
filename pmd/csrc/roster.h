/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which works a round asks. A ring that has nothing costs some cache lines each time, so the works that moved
 * nothing for IDLE_ROUNDS doze: while others are awake they are asked in turn, one in ASKED_EVERY rounds, and what
 * they cost those does not grow with their number. Where all doze, all are asked.
 */
#ifndef ROSTER_H
#define ROSTER_H

#include "packed.h"
#include "split.h"

#define IDLE_ROUNDS 64u
#define NOBODY UINT16_MAX
#define ASKED_EVERY 4u

/* Two lists of all works, by their index, linked by work->next. */
struct roster {
	struct rk_work *works;
	uint16_t awake;              /* the first of those asked in each round */
	uint16_t dozing, dozing_last; /* of those asked in turn: the next, and the one asked last */
	uint16_t dozing_count;
	uint32_t rounds;
};

static inline void roster_open(struct roster *roster, struct rk_work *works, uint32_t count)
{
	*roster = (struct roster){works, count ? 0 : NOBODY, NOBODY, NOBODY, 0, 0};
	for (uint32_t i = 0; i < count; i++) {
		works[i].idle = 0;
		works[i].next = i + 1 < count ? (uint16_t)(i + 1) : NOBODY;
	}
}

/* How many of those that doze are to be asked in a round. */
static inline uint32_t roster_turns(struct roster *roster)
{
	const uint32_t one = roster->dozing_count && roster->rounds++ % ASKED_EVERY == 0;

	return roster->awake == NOBODY ? roster->dozing_count : one;
}

/* The first of those asked in turn, off their list; there is one. */
static inline uint16_t roster_turn(struct roster *roster)
{
	const uint16_t work = roster->dozing;

	roster->dozing = roster->works[work].next;
	roster->dozing_count--;
	return work;
}

/* It had nothing: its turn comes again after all the others'. */
static inline void roster_doze(struct roster *roster, uint16_t work)
{
	roster->works[work].next = NOBODY;
	if (roster->dozing_count++)
		roster->works[roster->dozing_last].next = work;
	else
		roster->dozing = work;
	roster->dozing_last = work;
}

static inline void roster_wake(struct roster *roster, uint16_t work)
{
	roster->works[work].idle = 0;
	roster->works[work].next = roster->awake;
	roster->awake = work;
}

static inline void roster_fetch_ring(const struct rk_queue *ring)
{
	if (ring)
		shm_prefetch(queue_packed(ring) ? packed_desc(ring, ring->next)
						: shm_at(ring->avail, RING_INDEX));
}

/*
 * Fetches, while the busy works have their turns, what those after them need: of the next work what its rings
 * say, of the one after it the rings, of a third the work. Each is found by what was fetched a round before.
 */
static inline void roster_fetch(const struct roster *roster)
{
	const struct rk_work *first, *second;

	if (roster->dozing_count < 3)
		return;
	first = &roster->works[roster->dozing];
	second = &roster->works[first->next];
	roster_fetch_ring(first->tx);
	roster_fetch_ring(first->rx);
	__builtin_prefetch(second->generation);
	__builtin_prefetch(second->tx);
	__builtin_prefetch(second->rx);
	__builtin_prefetch(second->port);
	__builtin_prefetch(&roster->works[second->next]);
}

#endif
