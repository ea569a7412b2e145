/* SPDX-License-Identifier: BSD-3-Clause */
/* A turn of a ring: what the loop calls. The turns of either layout are compiled from one source (layout.h). */
#ifndef TURN_H
#define TURN_H

#include "packed.h"
#include "split.h"

/* Since *clock, in TSC cycles; it becomes now. A turn counts from the end of the one before (loop.c). */
static inline uint64_t clock_lap(uint64_t *clock)
{
	const uint64_t before = *clock;

	*clock = cycles_now();
	return *clock - before;
}

#define TURNS_OF(layout)                                                                          \
	uint32_t layout##_dequeue_turn(struct rk_queue *queue, struct rk_port *port,              \
				       struct place place, uint32_t burst, uint64_t *clock);      \
	uint32_t layout##_dequeue_held_turn(struct rk_queue *queue, struct rk_port *port,         \
					    uint32_t burst, uint64_t *clock);                     \
	uint32_t layout##_dequeue_drain(struct rk_queue *queue, struct rk_port *port);            \
	void layout##_dequeue_abandon(struct rk_queue *queue);                                    \
	uint32_t layout##_enqueue_turn(struct rk_queue *queue, struct rk_port *port,              \
				       struct place place, uint32_t burst, uint64_t *clock);      \
	uint32_t layout##_enqueue_frames(struct rk_queue *queue, const struct rk_frame *frames,   \
					 uint32_t count, uint32_t flush);                         \
	uint32_t layout##_direct_turn(struct rk_queue *queue, struct rk_port *port,               \
				      uint32_t burst, uint64_t *clock);                           \
	void layout##_direct_drain(struct rk_queue *queue, struct rk_port *port);                 \
	bool layout##_direct_suits(struct rk_queue *queue, const struct rk_port *port);          \
	uint32_t layout##_watched_turn(struct rk_queue *queue, struct rk_port *port,             \
				       uint32_t burst, uint64_t *clock);

TURNS_OF(split)
TURNS_OF(packed)

/* The place to look at chains from; .left is 0 where there is nothing to do. */
static inline struct place queue_place(struct rk_queue *queue, bool packed)
{
	const struct place place = packed ? packed_place(queue) : split_place(queue);

	queue->empty = place.left == 0;
	queue->waiting = false;
	return place;
}

/* One turn each; return the chains completed. Here is all that is done where VM1 has made nothing available. */
static inline uint32_t dequeue_turn(struct rk_queue *queue, struct rk_port *port, uint32_t burst,
				    uint64_t *clock)
{
	const bool packed = queue_packed(queue);
	struct place place;

	if (port->ops->reclaim)
		return packed ? packed_dequeue_held_turn(queue, port, burst, clock)
			      : split_dequeue_held_turn(queue, port, burst, clock);
	place = queue_place(queue, packed);
	if (place.left == 0)
		return 0;
	return packed ? packed_dequeue_turn(queue, port, place, burst, clock)
		      : split_dequeue_turn(queue, port, place, burst, clock);
}

static inline uint32_t enqueue_turn(struct rk_queue *queue, struct rk_port *port, uint32_t burst,
				    uint64_t *clock)
{
	const bool packed = queue_packed(queue);
	struct place place;

	if (queue->receives) {
		if (queue->receives == RECEIVES_WATCHED)
			return packed ? packed_watched_turn(queue, port, burst, clock)
				      : split_watched_turn(queue, port, burst, clock);
		return packed ? packed_direct_turn(queue, port, burst, clock)
			      : split_direct_turn(queue, port, burst, clock);
	}
	if (!(queue->flags & RK_RING_ENABLED))
		return 0;
	place = queue_place(queue, packed);
	if (place.left == 0)
		return 0;
	return packed ? packed_enqueue_turn(queue, port, place, burst, clock)
		      : split_enqueue_turn(queue, port, place, burst, clock);
}

/*
 * Puts count frames, with offloads that the ring's flags take, into the ring at once; how many are done with. The
 * rest found no buffer, or none within TURN_WALK_MAX. flush: of the frames (flush.h).
 */
static inline uint32_t enqueue_frames(struct rk_queue *queue, const struct rk_frame *frames,
				      uint32_t count, uint32_t flush)
{
	return queue_packed(queue) ? packed_enqueue_frames(queue, frames, count, flush)
				   : split_enqueue_frames(queue, frames, count, flush);
}

/* Returns what the VF has filled, and gives it nothing. */
static inline void direct_drain(struct rk_queue *queue, struct rk_port *port)
{
	if (queue_packed(queue))
		packed_direct_drain(queue, port);
	else
		split_direct_drain(queue, port);
}

/* Takes nothing new, and returns what the port is done with; what is left in flight. */
static inline uint32_t dequeue_drain(struct rk_queue *queue, struct rk_port *port)
{
	return queue_packed(queue) ? packed_dequeue_drain(queue, port)
				   : split_dequeue_drain(queue, port);
}

#endif
