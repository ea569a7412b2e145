/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a turn does with a ring, by its layout. The turns are compiled twice, each time for one layout: neither
 * pays for the other. LAYOUT_PACKED says which; LAYOUT() is the name of a function there (turn.h).
 */
#ifndef LAYOUT_H
#define LAYOUT_H

#ifdef LAYOUT_PACKED
#define LAYOUT(name) packed_##name
#else
#define LAYOUT_PACKED false
#define LAYOUT(name) split_##name
#endif

#include "turn.h"

static inline struct place ring_place(struct rk_queue *queue)
{
	return queue_place(queue, LAYOUT_PACKED);
}

/* What LOOK_FAULT means. */
#define RING_FAULT (LAYOUT_PACKED ? RK_FAULT_LONG_CHAIN : RK_FAULT_BAD_HEAD)

/* The place after the chains of span slots from there on. */
static inline struct place ring_after(const struct rk_queue *queue, struct place place, uint32_t span)
{
	place.next = LAYOUT_PACKED ? packed_after(queue, place.next, span)
					: (uint16_t)(place.next + span);
	place.left -= span;
	return place;
}

/* The chain at a place, for reading or for writing, its verdict in chain. */
static inline enum look ring_look(struct rk_queue *queue, const struct place *place,
				 uint32_t permission, struct chain *chain, struct head *head)
{
	if (LAYOUT_PACKED)
		return packed_look(queue, place, permission, chain, head);
	if (place->left == 0)
		return LOOK_NONE;
	*head = (struct head){shm_load16(split_entry(queue, place->next)), 1};
	if (head->id >= queue->size)
		return LOOK_FAULT;
	chain->verdict = chain_walk(queue, head, permission, chain);
	return LOOK_CHAIN;
}

/* Returns a chain that VM1 transmitted. */
static inline void ring_return_read(struct rk_queue *queue, const struct head *head)
{
	if (LAYOUT_PACKED && queue->flags & RK_RING_IN_ORDER)
		packed_return_read(queue, head, 1);
	else if (LAYOUT_PACKED)
		packed_return(queue, *head, 0, false);
	else
		split_return(queue, head->id, 0);
}

/* The same of count chains, oldest first. */
static inline void ring_return_read_run(struct rk_queue *queue, const struct head *heads,
					uint32_t count)
{
	if (LAYOUT_PACKED)
		packed_return_read(queue, heads, count);
	else
		split_return_run(queue, heads, NULL, count);
}

/* Returns a chain with length bytes written to it; more: the next one holds more of the same frame. */
static inline void ring_return(struct rk_queue *queue, struct head head, uint32_t length, bool more)
{
	if (LAYOUT_PACKED)
		packed_return(queue, head, length, more);
	else
		split_return(queue, head.id, length);
}

/* The same of count chains with a frame each. */
static inline void ring_return_run(struct rk_queue *queue, const struct head *heads,
				   const uint32_t *lengths, uint32_t count)
{
	if (LAYOUT_PACKED)
		packed_return_run(queue, heads, lengths, count);
	else
		split_return_run(queue, heads, lengths, count);
}

#endif
