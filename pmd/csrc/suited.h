/* SPDX-License-Identifier: BSD-3-Clause */
/* Which of VM1's receive chains the port's VF can write to by itself. */
#ifndef SUITED_H
#define SUITED_H

#include "layout.h"

/* Of the chain at a place. */
enum suit {
	SUIT_NONE, /* there is none */
	SUIT_YES,
	SUIT_NO,
	SUIT_FAULT, /* of the ring */
};

/* Whether a chain is one run for the frame, behind or after the whole header; then where they are. */
static inline bool find_room(const struct rk_queue *queue, const struct chain *chain,
			     struct posted *posted, struct iovec *memory)
{
	const uint32_t header = queue->header_bytes;
	const struct iovec *first = chain->segments;

	posted->header_at = first[0].iov_base;
	if (chain->count == 1 && first[0].iov_len > header)
		*memory = (struct iovec){shm_at(first[0].iov_base, header),
					 first[0].iov_len - header};
	else if (chain->count == 2 && first[0].iov_len == header)
		*memory = first[1];
	else
		return false;
	posted->frame_at = memory->iov_base;
	posted->room = (uint32_t)memory->iov_len;
	return true;
}

/* Judges the chain at a place; what the VF is to be given, if it suits. */
static inline enum suit look_suited(struct rk_queue *queue, const struct rk_port *port,
				    const struct place *place, struct posted *posted,
				    struct rk_posting *posting)
{
	struct iovec memory;
	struct chain chain = {.segments = queue->segments};

	switch (ring_look(queue, place, RK_WRITE, &chain, &posted->head)) {
	case LOOK_NONE:
		return SUIT_NONE;
	case LOOK_FAULT:
		return SUIT_FAULT;
	case LOOK_CHAIN:
		break;
	}
	if (chain.verdict != RK_SENT || !find_room(queue, &chain, posted, &memory))
		return SUIT_NO;
	posting->iova = port->ops->direct->suits(port, &memory);
	posting->bytes = posted->room;
	return posting->iova ? SUIT_YES : SUIT_NO;
}

#endif
