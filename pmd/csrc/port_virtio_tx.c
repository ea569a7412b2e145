/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The virtio-net port transmits. The header is ours, in the buffer of the chain's first descriptor. A
 * frame whose segments all lie in windows that the device reaches is sent from there, and held until
 * it is sent; another is copied behind the header, into the buffers of its descriptors.
 */
#define _GNU_SOURCE
#include "virtio_net.h"
#include "windows.h"

/* Shorter frames are copied, and those in small pieces: cheaper, and VM1 has its buffers back at once. */
#define HELD_SEGMENT_BYTES_MIN 128u /* on average, where short frames are copied at all */
#define HELD_SEGMENTS_MAX 24u       /* as many as Linux makes of a frame to be segmented, and some */

/* Takes the chains back that were used, oldest first: those behind one that was not have to wait. */
static void tx_reclaim(struct virtio_port *vf)
{
	struct virtqueue *tx = &vf->tx;
	struct rk_sending *sending = &vf->report->sending;
	struct virtqueue_used used;
	uint32_t sent = 0;

	while (virtqueue_take(tx, &used))
		sent++;
	if (tx->trouble)
		virtio_fail(vf, tx->trouble);
	while (tx->span[vf->tx_first & tx->mask] & SPAN_DONE) {
		uint16_t *span = &tx->span[vf->tx_first & tx->mask];

		vf->held_done += !!(*span & SPAN_HELD);
		vf->tx_first += *span & SPAN_COUNT;
		*span = 0;
	}
	__atomic_store_n(&sending->looks, sending->looks + 1, __ATOMIC_RELAXED);
	if (sent)
		__atomic_store_n(&sending->done, sending->done + sent, __ATOMIC_RELAXED);
}

/* 5.1.6.2. What the frame asks for was judged; what else VM1 wrote stays here. */
static void tx_header(uint8_t *to, const struct rk_frame *frame)
{
	struct rk_offload offload = frame->offload;

	offload.flags &= RK_OFFLOAD_NEEDS_CSUM;
	if (offload.header_bytes > frame->bytes)
		offload.header_bytes = 0;
	memcpy(to, &offload, sizeof(offload));
	memset(to + sizeof(offload), 0, HEADER_BYTES - sizeof(offload));
}

/* Whether the device can and should read the frame where it is; then iovas has its segments' addresses. */
static bool tx_holdable(const struct virtio_port *vf, const struct rk_frame *frame, uint64_t *iovas)
{
	if (frame->bytes < vf->port.copy_below || frame->segment_count > HELD_SEGMENTS_MAX)
		return false;
	if (vf->port.copy_below && frame->bytes < frame->segment_count * HELD_SEGMENT_BYTES_MIN)
		return false;
	return window_iovas(vf->windows, frame, iovas);
}

/* One descriptor for the header, and one a segment. */
static void tx_hold(struct virtio_port *vf, struct rk_frame *frame, const uint64_t *iovas)
{
	struct virtqueue *tx = &vf->tx;
	const uint16_t id = (uint16_t)(tx->next & tx->mask);

	tx_header(virtqueue_buffer(tx, id), frame);
	virtqueue_begin(tx, id, frame->segment_count + 1, SPAN_HELD);
	virtqueue_describe(tx, id, 0, virtqueue_buffer_iova(tx, id), HEADER_BYTES, VIRTQUEUE_NEXT);
	for (uint32_t i = 0; i < frame->segment_count; i++)
		virtqueue_describe(tx, id, i + 1, iovas[i], (uint32_t)frame->segments[i].iov_len,
				   i + 1 < frame->segment_count ? VIRTQUEUE_NEXT : 0);
	frame->verdict = RK_HELD;
	vf->port.tx_held++;
}

/* Header and frame in the buffers of span descriptors, which lie side by side but for the ring's end. */
static void tx_copy(struct virtio_port *vf, const struct rk_frame *frame, uint32_t span)
{
	struct virtqueue *tx = &vf->tx;
	const uint16_t id = (uint16_t)(tx->next & tx->mask);
	const uint32_t end = (tx->mask + 1) * tx->buffer_bytes;
	const uint32_t at = id * tx->buffer_bytes;
	uint32_t left = HEADER_BYTES + frame->bytes;

	tx_header(tx->buffers + at, frame);
	port_copy_around(tx->buffers, end, at + HEADER_BYTES, frame, vf->port.flush);
	virtqueue_begin(tx, id, span, 0);
	for (uint32_t i = 0; i < span; i++) {
		uint32_t part = left < tx->buffer_bytes ? left : tx->buffer_bytes;

		virtqueue_describe(tx, id, i, virtqueue_buffer_iova(tx, (id + i) & tx->mask), part,
				   i + 1 < span ? VIRTQUEUE_NEXT : 0);
		left -= part;
	}
}

uint32_t virtio_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct virtio_port *vf = (struct virtio_port *)port;
	struct rk_sending *sending = &vf->report->sending;
	struct virtqueue *tx = &vf->tx;
	const uint32_t before = tx->next;
	uint32_t given = 0;
	uint32_t i;

	if (!__atomic_load_n(vf->link_up, __ATOMIC_RELAXED))
		return port_drop(frames, n, RK_DROP_VF_DOWN);
	tx_reclaim(vf);
	if (tx->trouble)
		return port_drop(frames, n, RK_DROP_VF_ERROR);
	for (i = 0; i < n; i++) {
		uint32_t span = (HEADER_BYTES + frames[i].bytes + tx->buffer_bytes - 1) / tx->buffer_bytes;
		uint64_t iovas[HELD_SEGMENTS_MAX];
		bool hold;

		if (frames[i].bytes > vf->frame_bytes_max && !frames[i].offload.gso_type) {
			frames[i].verdict = RK_DROP_OVERSIZE;
			continue;
		}
		hold = tx_holdable(vf, &frames[i], iovas);
		if (hold)
			span = frames[i].segment_count + 1;
		if (tx->mask + 1 - (tx->next - vf->tx_first) < span)
			break;
		if (hold)
			tx_hold(vf, &frames[i], iovas);
		else
			tx_copy(vf, &frames[i], span);
		given++;
	}
	if (tx->next != before) {
		virtqueue_publish(tx);
		__atomic_store_n(&sending->given, sending->given + given, __ATOMIC_RELAXED);
	}
	return i;
}

uint32_t virtio_reclaim(struct rk_port *port)
{
	struct virtio_port *vf = (struct virtio_port *)port;
	uint32_t done;

	tx_reclaim(vf);
	done = vf->held_done;
	vf->held_done = 0;
	return done;
}
