/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The igbvf port transmits. A frame whose segments all lie in windows that the VF reaches is sent from
 * there, and held until it is sent; another is copied into the buffers of its descriptors.
 */
#define _GNU_SOURCE
#include "igbvf.h"
#include "windows.h"

#define HELD_SEGMENTS_MAX 8u /* those in more pieces are copied */

/* Takes back the descriptors of frames that were sent: each frame's last one says so. TDH does not: it is the VF's next
 * one (8.12), and a VF may go on and report nothing. That is seen by what is told here. */
static void tx_reclaim(struct igbvf_port *vf)
{
	struct rk_sending *sending = &vf->report->sending;
	struct igbvf_ring *tx = &vf->tx;

	while (tx->first != tx->next) {
		uint32_t found = vf->tx_span[tx->first & tx->mask];
		uint32_t span = found & ~SPAN_HELD;
		uint32_t last = (tx->first + span - 1) & tx->mask;

		if (!(dma_read32(&tx->descriptors[last].word3) & TX_DONE))
			break;
		dma_consume();
		vf->held_done += !!(found & SPAN_HELD);
		tx->first += span;
	}
	__atomic_store_n(&sending->looks, sending->looks + 1, __ATOMIC_RELAXED);
	__atomic_store_n(&sending->done, tx->first, __ATOMIC_RELAXED);
}

/* Whether the VF can and should read the frame where it is; then iovas has its segments' addresses. */
static bool tx_holdable(const struct igbvf_port *vf, const struct rk_frame *frame, uint64_t *iovas)
{
	if (frame->bytes < vf->port.copy_below || frame->segment_count > HELD_SEGMENTS_MAX)
		return false;
	return window_iovas(vf->windows, frame, iovas);
}

/* One descriptor a segment. */
static void tx_hold(struct igbvf_port *vf, struct rk_frame *frame, const uint64_t *iovas)
{
	struct igbvf_ring *tx = &vf->tx;

	vf->tx_span[tx->next & tx->mask] = (uint16_t)(frame->segment_count | SPAN_HELD);
	for (uint32_t i = 0; i < frame->segment_count; i++)
		igbvf_tx_fill(tx, tx->next + i, iovas[i], (uint32_t)frame->segments[i].iov_len,
			      frame->bytes << TX_PAYLOAD_SHIFT, i + 1 == frame->segment_count);
	tx->next += frame->segment_count;
	frame->verdict = RK_HELD;
	vf->port.tx_held++;
}

/* Copies the frame into the buffers of span descriptors from next on, which lie side by side but for
 * the ring's end; then fills the descriptors. */
static void tx_copy(struct igbvf_port *vf, const struct rk_frame *frame, uint32_t bytes,
		    uint32_t span)
{
	struct igbvf_ring *tx = &vf->tx;
	const uint32_t end = tx->count * vf->buffer_bytes;
	uint32_t at = (tx->next & tx->mask) * vf->buffer_bytes;

	at = port_copy_around(tx->buffers, end, at, frame, vf->port.flush);
	if (bytes > frame->bytes) /* one buffer: it is shorter than Ethernet's minimum */
		memset(tx->buffers + at, 0, bytes - frame->bytes);
	vf->tx_span[tx->next & tx->mask] = (uint16_t)span;
	for (uint32_t i = 0; i < span; i++) {
		uint32_t begin = i * vf->buffer_bytes;
		uint32_t part = bytes - begin < vf->buffer_bytes ? bytes - begin : vf->buffer_bytes;

		igbvf_tx_fill(tx, tx->next + i, buffer_iova(vf, tx, (tx->next + i) & tx->mask), part,
			      bytes << TX_PAYLOAD_SHIFT, i + 1 == span);
	}
	tx->next += span;
}

uint32_t igbvf_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct igbvf_port *vf = (struct igbvf_port *)port;
	struct igbvf_ring *tx = &vf->tx;
	const uint32_t before = tx->next;
	uint32_t i;

	if (!__atomic_load_n(vf->link_up, __ATOMIC_RELAXED))
		return port_drop(frames, n, RK_DROP_VF_DOWN);
	tx_reclaim(vf);
	for (i = 0; i < n; i++) {
		uint32_t bytes = frames[i].bytes < IGBVF_FRAME_BYTES_MIN ? IGBVF_FRAME_BYTES_MIN : frames[i].bytes;
		uint32_t span = (bytes + vf->buffer_bytes - 1) / vf->buffer_bytes;
		uint64_t iovas[HELD_SEGMENTS_MAX];
		bool hold;

		if (__builtin_expect(frames[i].offload.flags, 0)) {
			if (!igbvf_tx_asking(vf, &frames[i]))
				break;
			continue;
		}
		if (frames[i].bytes > vf->frame_bytes_max) {
			frames[i].verdict = RK_DROP_OVERSIZE;
			continue;
		}
		hold = tx_holdable(vf, &frames[i], iovas);
		if (hold)
			span = frames[i].segment_count;
		if (tx->count - 1 - (tx->next - tx->first) < span)
			break;
		if (hold)
			tx_hold(vf, &frames[i], iovas);
		else
			tx_copy(vf, &frames[i], bytes, span);
	}
	if (tx->next != before) {
		dma_publish();
		mmio_write32(tx->tail, tx->next & tx->mask);
		__atomic_store_n(&vf->report->sending.given, tx->next, __ATOMIC_RELAXED);
	}
	return i;
}

uint32_t igbvf_reclaim(struct rk_port *port)
{
	struct igbvf_port *vf = (struct igbvf_port *)port;
	uint32_t done;

	tx_reclaim(vf);
	done = vf->held_done;
	vf->held_done = 0;
	return done;
}
