/* SPDX-License-Identifier: BSD-3-Clause */
/* Before a chain that lacks translations: what the chains after it lack is asked for with it. */
#ifndef AHEAD_H
#define AHEAD_H

#include "layout.h"
#include "missing.h"

/* Walks count chains at most from a place on; segments: room for one, of which nothing is kept. */
static __attribute__((noinline)) void look_ahead(struct rk_queue *queue, struct place place,
						 struct iovec *segments, uint32_t count,
						 uint32_t permission)
{
	for (; count && !missing_full(queue) && queue->walked < TURN_WALK_MAX; count--) {
		struct chain chain = {.segments = segments};
		struct head head;

		if (ring_look(queue, &place, permission, &chain, &head) != LOOK_CHAIN)
			return;
		place = ring_after(queue, place, head.span);
	}
}

#endif
