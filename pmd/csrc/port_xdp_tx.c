/* SPDX-License-Identifier: BSD-3-Clause */
/* The xdp port transmits: frames are copied into chunks, which come back when the interface sent them. */
#define _GNU_SOURCE
#include "xdp.h"

#include <errno.h>

#define XDP_FRAME_BYTES_MIN 60u /* Ethernet's, without FCS: not every driver pads what it does not copy */

bool xdp_wake_tx(struct xdp_queue *queue)
{
	struct xdp_ring *tx = &queue->tx;
	uint32_t before = tx->at, now;

	shm_fence(); /* our index before its flag: it sets the flag before it looks at the index once more */
	if (!(__atomic_load_n(tx->flags, __ATOMIC_RELAXED) & XDP_WAKE))
		return true;
	for (;; before = now) {
		/* Where the kernel copies, a call sends some 32 frames and says so by EAGAIN. */
		if (sendto(queue->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0)
			break;
		if (errno == ENETDOWN || errno == ENXIO || errno == EBUSY) {
			queue->down = true; /* down; gone; without a link, which cost a frame */
			return false;
		}
		now = __atomic_load_n(tx->consumer, __ATOMIC_ACQUIRE);
		if (now == before || now == tx->at)
			break;
	}
	queue->down = false;
	return true;
}

void xdp_reclaim(struct xdp_port *xdp, struct xdp_queue *queue)
{
	struct xdp_ring *completion = &queue->completion;
	uint32_t n = xdp_ready(completion);

	if (n > queue->tx_count) {
		xdp_break(xdp);
		return;
	}
	if (n == 0)
		return;
	for (; n; n--) {
		const uint64_t *from = &completion->addresses[completion->at++ & completion->mask];
		uint64_t chunk = __atomic_load_n(from, __ATOMIC_RELAXED) >> xdp->chunk_shift;

		/* One that is not on its way: it would be free twice. */
		if (chunk < queue->rx_count || chunk >= queue->rx_count + queue->tx_count ||
		    queue->ours[chunk]) {
			xdp_break(xdp);
			return;
		}
		queue->ours[chunk] = true;
		queue->free[queue->free_count++] = (uint32_t)chunk;
	}
	xdp_publish(completion->consumer, completion);
}

/* A chunk and a descriptor for bytes of a frame; the chunk's memory. There is a chunk. */
static uint8_t *tx_begin(struct xdp_port *xdp, struct xdp_queue *queue, uint32_t bytes, bool more)
{
	struct xdp_ring *tx = &queue->tx;
	uint32_t chunk = queue->free[--queue->free_count];
	uint64_t at = (uint64_t)chunk << xdp->chunk_shift;

	queue->ours[chunk] = false;
	tx->descriptors[tx->at++ & tx->mask] =
		(struct xdp_descriptor){at, bytes, more ? XDP_MORE : 0};
	return queue->memory + at;
}

/* Copies a frame into as many chunks as it needs. */
static void tx_spread(struct xdp_port *xdp, struct xdp_queue *queue, const struct rk_frame *frame)
{
	uint32_t left = frame->bytes;
	uint32_t room = 0;
	uint8_t *to = NULL;

	for (uint32_t i = 0; i < frame->segment_count; i++) {
		struct shm *from = frame->segments[i].iov_base;
		size_t rest = frame->segments[i].iov_len;

		while (rest) {
			size_t part;

			if (room == 0) {
				room = left < xdp->chunk_bytes ? left : xdp->chunk_bytes;
				left -= room;
				to = tx_begin(xdp, queue, room, left > 0);
			}
			part = rest < room ? rest : room;
			shm_copy_frame_in(to, from, part);
			from = shm_at(from, part);
			to += part;
			rest -= part;
			room -= (uint32_t)part;
		}
	}
}

/* Puts a frame into the ring; false if it has to wait for chunks. */
static bool tx_frame(struct xdp_port *xdp, struct xdp_queue *queue, const struct rk_frame *frame)
{
	uint32_t bytes = frame->bytes < XDP_FRAME_BYTES_MIN ? XDP_FRAME_BYTES_MIN : frame->bytes;
	uint8_t *to;

	/* Each descriptor has its chunk, and the ring one for each chunk: there is always one free. */
	if ((bytes + xdp->chunk_bytes - 1) >> xdp->chunk_shift > queue->free_count)
		return false;
	if (bytes > xdp->chunk_bytes) {
		tx_spread(xdp, queue, frame);
		return true;
	}
	to = tx_begin(xdp, queue, bytes, false);
	port_copy_frame(to, frame, xdp->port.flush);
	memset(to + frame->bytes, 0, bytes - frame->bytes);
	return true;
}

uint32_t xdp_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct xdp_port *xdp = (struct xdp_port *)port;
	struct xdp_queue *queue = &xdp->queues[0];
	const uint32_t before = queue->tx.at;
	uint32_t bytes_max = __atomic_load_n(&xdp->state->frame_bytes_max, __ATOMIC_RELAXED);
	uint32_t i;

	xdp_reclaim(xdp, queue);
	if (xdp_broken(xdp))
		return port_drop(frames, n, RK_DROP_VF_ERROR);
	if (bytes_max == 0 || (queue->down && !xdp_wake_tx(queue)))
		return port_drop(frames, n, RK_DROP_VF_DOWN);
	if (!xdp->multi_buffer && bytes_max > xdp->chunk_bytes)
		bytes_max = xdp->chunk_bytes;
	for (i = 0; i < n; i++) {
		if (frames[i].bytes > bytes_max)
			frames[i].verdict = RK_DROP_OVERSIZE;
		else if (!tx_frame(xdp, queue, &frames[i]))
			break;
	}
	if (queue->tx.at != before)
		xdp_publish(queue->tx.producer, &queue->tx);
	if (queue->free_count != queue->tx_count)
		xdp_wake_tx(queue);
	return i;
}
