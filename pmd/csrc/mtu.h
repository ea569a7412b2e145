/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * VM1's MTU, of what it receives. 5.1.4.1: no packet of more than mtu and the Ethernet header's length, but for
 * those that VM1 takes to be cut. Tags are of that header's length: they come on top of it, as they do on a wire.
 */
#ifndef MTU_H
#define MTU_H

#include "queue.h"

/* The longest frame without tags; mtu 0: none is too long. */
uint32_t mtu_frame_bytes(uint32_t mtu);

/* Of a frame longer than that: whether it is too long all the same. */
bool mtu_exceeded(const struct rk_queue *queue, const struct rk_frame *frame);

/* Whether VM1 must not be given the frame, whose offload is judged and of VM1's. */
static inline bool over_mtu(const struct rk_queue *queue, const struct rk_frame *frame)
{
	return __builtin_expect(frame->bytes > queue->frame_bytes_max, 0) &&
	       mtu_exceeded(queue, frame);
}

/* How many frames from the first on VM1 may be given, at most count. */
uint32_t mtu_run(const struct rk_queue *queue, const struct rk_frame *frames, uint32_t count);

#endif
