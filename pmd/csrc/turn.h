/* SPDX-License-Identifier: BSD-3-Clause */
/* A turn of a ring: what the loop calls. The turns of either layout are compiled from one source (layout.h). */
#ifndef TURN_H
#define TURN_H

#include "queue.h"

#define TURNS_OF(layout)                                                                          \
	uint32_t layout##_dequeue_turn(struct rk_queue *queue, struct rk_port *port,              \
				       uint32_t burst);                                           \
	uint32_t layout##_dequeue_drain(struct rk_queue *queue, struct rk_port *port);            \
	void layout##_dequeue_abandon(struct rk_queue *queue);                                    \
	uint32_t layout##_enqueue_turn(struct rk_queue *queue, struct rk_port *port,              \
				       uint32_t burst);                                           \
	uint32_t layout##_enqueue_frames(struct rk_queue *queue, const struct rk_frame *frames,   \
					 uint32_t count);                                         \
	uint32_t layout##_direct_turn(struct rk_queue *queue, struct rk_port *port,               \
				      uint32_t burst);                                            \
	void layout##_direct_drain(struct rk_queue *queue, struct rk_port *port);                 \
	bool layout##_direct_suits(struct rk_queue *queue, const struct rk_port *port);

TURNS_OF(split)
TURNS_OF(packed)

/* One turn each; return the chains completed. */
static inline uint32_t dequeue_turn(struct rk_queue *queue, struct rk_port *port, uint32_t burst)
{
	return queue_packed(queue) ? packed_dequeue_turn(queue, port, burst)
				   : split_dequeue_turn(queue, port, burst);
}

static inline uint32_t enqueue_turn(struct rk_queue *queue, struct rk_port *port, uint32_t burst)
{
	if (queue->posted)
		return queue_packed(queue) ? packed_direct_turn(queue, port, burst)
					   : split_direct_turn(queue, port, burst);
	return queue_packed(queue) ? packed_enqueue_turn(queue, port, burst)
				   : split_enqueue_turn(queue, port, burst);
}

/*
 * Puts count frames, with offloads that the ring's flags take, into the ring at once; how many are done with. The
 * rest found no buffer, or none within TURN_WALK_MAX.
 */
static inline uint32_t enqueue_frames(struct rk_queue *queue, const struct rk_frame *frames,
				      uint32_t count)
{
	return queue_packed(queue) ? packed_enqueue_frames(queue, frames, count)
				   : split_enqueue_frames(queue, frames, count);
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
