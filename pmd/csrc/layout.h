/* SPDX-License-Identifier: BSD-3-Clause */
/* What a turn does with a ring, by its layout. */
#ifndef LAYOUT_H
#define LAYOUT_H

#include "packed.h"
#include "split.h"

static inline bool ring_packed(const struct rk_queue *queue)
{
	return queue->flags & RK_RING_PACKED;
}

/* The place to look at chains from; .left is 0 where there is nothing to do. */
static inline struct place ring_place(struct rk_queue *queue)
{
	return ring_packed(queue) ? packed_place(queue) : split_place(queue);
}

/* The place after the chains of span slots from there on. */
static inline struct place ring_after(const struct rk_queue *queue, struct place place, uint32_t span)
{
	place.next = ring_packed(queue) ? packed_after(queue, place.next, span)
					: (uint16_t)(place.next + span);
	place.left -= span;
	return place;
}

/* Returns a chain that VM1 transmitted; of several in a run, oldest first. */
static inline void ring_return_read(struct rk_queue *queue, struct head head)
{
	if (ring_packed(queue))
		packed_return_read(queue, head);
	else
		split_return(queue, head.id, 0);
}

static inline void ring_return_read_run(struct rk_queue *queue, const struct head *heads,
					uint32_t count)
{
	if (ring_packed(queue))
		packed_return_read_run(queue, heads, count);
	else
		split_return_run(queue, heads, NULL, count);
}

/* Returns a chain with length bytes written to it; more: the next one holds more of the same frame. */
static inline void ring_return(struct rk_queue *queue, struct head head, uint32_t length, bool more)
{
	if (ring_packed(queue))
		packed_return(queue, head, length, more);
	else
		split_return(queue, head.id, length);
}

#endif
