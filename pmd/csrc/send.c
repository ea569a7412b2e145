/* SPDX-License-Identifier: BSD-3-Clause */
/* VM1's frames on their way to the port: made one segment, or as plain as the port wants them. */
#include "queue.h"

void send_flatten(struct rk_queue *queue, struct rk_frame *frame)
{
	uint32_t at = 0;

	for (uint32_t i = 0; i < frame->segment_count; i++) {
		shm_copy_in(queue->bounce + at, frame->segments[i].iov_base,
			    frame->segments[i].iov_len);
		at += (uint32_t)frame->segments[i].iov_len;
	}
	frame->segments[0].iov_base = queue->bounce;
	frame->segments[0].iov_len = at;
	frame->segment_count = 1;
}

/* Whether the port does what a judged frame asks for. */
static bool takes(const struct rk_port *port, const struct rk_frame *frame)
{
	const uint32_t needs = offload_needs(&frame->offload);

	if (needs & ~port->offloads)
		return false;
	return !needs || !port->ops->takes || port->ops->takes(port, frame);
}

/* Reads the header of a frame, once; whether the port can be given the frame as it is. */
static bool judge(const struct rk_queue *queue, const struct rk_port *port, struct rk_frame *frame)
{
	struct rk_offload *offload = &frame->offload;

	if (!frame->header_read) {
		struct shm *start = frame->segments->iov_base;

		shm_copy_in(offload, shm_at(start, -(uint64_t)queue->header_bytes),
			    sizeof(*offload));
	}
	if (offload_plain(frame))
		return true;
	offload->flags &= RK_OFFLOAD_NEEDS_CSUM; /* 5.1.6.2.1: the others are the device's to set */
	frame->verdict = offload_judge(frame, queue->flags);
	if (frame->verdict == RK_SENT)
		frame->done_here = !takes(port, frame);
	return frame->verdict == RK_SENT && !frame->done_here;
}

uint32_t send_judged(struct rk_queue *queue, struct rk_port *port, struct rk_frame *frames,
		     uint32_t n)
{
	struct expansion *expansion = queue->expansion;
	bool as_they_are = true;
	uint32_t taken = 0;

	for (uint32_t i = 0; i < n; i++)
		as_they_are &= judge(queue, port, &frames[i]);
	if (as_they_are) {
		expansion_forget(expansion);
		return port->ops->tx(port, frames, n);
	}
	expansion_make(expansion, frames, n);
	port->flush = FLUSH_NOTHING; /* its frames are in our own memory */
	if (expansion->count)
		taken = port->ops->tx(port, expansion->frames, expansion->count);
	return expansion_take(expansion, frames, taken);
}
