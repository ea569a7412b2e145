/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The virtio-net port: one queue pair of a virtio network device, by its virtqueues (virtio 1.3, 5.1).
 *
 * Each descriptor has a buffer of its own that never moves. Here is receive, into these buffers;
 * port_virtio_direct.c has it into VM1's, port_virtio_tx.c has transmit. A device that reports what cannot be is left alone until it is reset,
 * which the report asks for; frames that are merely too short are dropped.
 */
#define _GNU_SOURCE
#include "virtio_net.h"

#include <stdlib.h>

#define SIZE_MIN 64u /* holds the longest frame, with the smallest buffers */
#define SIZE_LIMIT 8192u
#define BUFFER_BYTES_MIN 2048u
#define NUM_BUFFERS_OFFSET 10u /* 5.1.6 */
#define SPAN_MAX RK_SEGMENTS_MAX /* buffers of a received frame */

void virtio_fail(struct virtio_port *vf, uint32_t trouble)
{
	vf->rx.trouble = vf->tx.trouble = trouble;
	__atomic_store_n(&vf->report->trouble, trouble, __ATOMIC_RELAXED);
}

/* ---- receive ---------------------------------------------------------------------------------- */

static void rx_give(struct virtio_port *vf, uint16_t id)
{
	virtqueue_begin(&vf->rx, id, 1, 0);
	virtqueue_describe(&vf->rx, id, 0, virtqueue_buffer_iova(&vf->rx, id), vf->rx.buffer_bytes,
			   VIRTQUEUE_WRITE);
}

void virtio_give_all(struct virtio_port *vf)
{
	for (uint32_t id = 0; id <= vf->rx.mask; id++)
		rx_give(vf, (uint16_t)id);
	virtqueue_publish(&vf->rx);
}

/* Takes the oldest count buffers off, and gives them to the device again. */
static void rx_release(struct virtio_port *vf, uint32_t count)
{
	if (!count || vf->rx.trouble)
		return;
	for (uint32_t i = 0; i < count; i++)
		rx_give(vf, vf->received[(vf->received_first + i) & vf->rx.mask].id);
	vf->received_first += count;
	vf->received_count -= count;
	virtqueue_publish(&vf->rx);
}

/* Takes what the device has filled. */
static void rx_take(struct virtio_port *vf)
{
	struct virtqueue *rx = &vf->rx;
	struct virtqueue_used used;

	while (virtqueue_take(rx, &used)) {
		uint32_t at = vf->received_first + vf->received_count;

		if (used.whole)
			used.bytes = rx->buffer_bytes;
		if (used.bytes == 0 || used.bytes > rx->buffer_bytes) {
			rx->trouble = RK_VIRTIO_BAD_LENGTH;
			break;
		}
		rx->span[used.id] = 0;
		vf->received[at & rx->mask] = (struct virtio_received){used.id, used.bytes};
		vf->received_count++;
	}
	if (rx->trouble)
		virtio_fail(vf, rx->trouble);
}

uint32_t virtio_rx_span(struct virtio_port *vf, uint32_t begin)
{
	const struct virtio_received *first;
	uint32_t span = 1;

	if (begin == vf->received_count)
		return 0;
	first = &vf->received[(vf->received_first + begin) & vf->rx.mask];
	if (first->bytes < HEADER_BYTES) {
		virtio_fail(vf, RK_VIRTIO_BAD_LENGTH);
		return 0;
	}
	if (vf->mergeable)
		span = dma_read16(virtqueue_buffer(&vf->rx, first->id) + NUM_BUFFERS_OFFSET);
	if (span == 0 || span > SPAN_MAX) {
		virtio_fail(vf, RK_VIRTIO_BAD_COUNT);
		return 0;
	}
	return span <= vf->received_count - begin ? span : 0;
}

/* The frame's segments; its bytes, or 0 where no frame has so few or so many. */
static uint32_t rx_segments(const struct virtio_port *vf, uint32_t begin, uint32_t span,
			    struct iovec *segments)
{
	uint32_t bytes = 0;

	for (uint32_t i = 0; i < span; i++) {
		const struct virtio_received *part =
			&vf->received[(vf->received_first + begin + i) & vf->rx.mask];
		const uint32_t skip = i ? 0 : HEADER_BYTES;

		segments[i].iov_base = virtqueue_buffer(&vf->rx, part->id) + skip;
		segments[i].iov_len = part->bytes - skip;
		bytes += part->bytes - skip;
	}
	return segments[0].iov_len < ETHERNET_HEADER_BYTES || bytes > RK_FRAME_MAX ? 0 : bytes;
}

static uint32_t virtio_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct virtio_port *vf = (struct virtio_port *)port;
	struct iovec *segments = vf->shown;
	uint32_t begin = 0, i = 0;

	if (n > RK_BURST_MAX)
		n = RK_BURST_MAX;
	rx_take(vf);
	while (i < n && !vf->rx.trouble) {
		uint32_t span = virtio_rx_span(vf, begin);
		uint32_t bytes;

		if (span == 0)
			break;
		bytes = rx_segments(vf, begin, span, segments);
		if (bytes == 0) {
			if (i)
				break; /* its turn comes when it is the oldest */
			vf->port.rx_missed++;
			rx_release(vf, span);
			continue;
		}
		port_show(&frames[i], segments, span, bytes);
		vf->shown_span[i++] = span;
		segments += span;
		begin += span;
	}
	return i;
}

static void virtio_rx_done(struct rk_port *port, uint32_t k)
{
	struct virtio_port *vf = (struct virtio_port *)port;
	uint32_t count = 0;

	for (uint32_t i = 0; i < k; i++)
		count += vf->shown_span[i];
	rx_release(vf, count);
}

/* ---- life ------------------------------------------------------------------------------------- */

static uint32_t virtio_arm(struct rk_port *port)
{
	return virtqueue_arm(&((struct virtio_port *)port)->rx) ? RK_NEWS : RK_ARMED;
}

static void virtio_disarm(struct rk_port *port)
{
	virtqueue_disarm(&((struct virtio_port *)port)->rx);
}

static void virtio_close(struct rk_port *port)
{
	struct virtio_port *vf = (struct virtio_port *)port;

	virtqueue_free(&vf->rx);
	virtqueue_free(&vf->tx);
	free(vf->received);
	free(vf->direct_bytes);
	free(vf->shown);
	free(vf);
}

static const struct rk_port_ops virtio_ops = {
	.kind = "virtio-net",
	.tx = virtio_tx,
	.rx = virtio_rx,
	.rx_done = virtio_rx_done,
	.reclaim = virtio_reclaim,
	.close = virtio_close,
	.direct = &virtio_direct_ops,
	.arm = virtio_arm,
	.disarm = virtio_disarm,
};

static bool size_valid(uint32_t size)
{
	return size >= SIZE_MIN && size <= SIZE_LIMIT && (size & (size - 1)) == 0;
}

struct rk_port *port_virtio_open(const struct rk_port_config *config, char *error,
				 size_t error_bytes)
{
	const struct rk_virtio_config *pair = config->virtio;
	struct virtio_port *vf;

	if (!pair)
		return port_refuse(error, error_bytes, "no queue pair of a device was given");
	if (!size_valid(pair->rx.size) || !size_valid(pair->tx.size) ||
	    pair->buffer_bytes < BUFFER_BYTES_MIN || pair->buffer_bytes > UINT16_MAX)
		return port_refuse(error, error_bytes, "queues of %u and %u buffers of %u bytes",
				   pair->rx.size, pair->tx.size, pair->buffer_bytes);
	vf = lines_zeroed(1, sizeof(*vf));
	if (!vf)
		return port_refuse(error, error_bytes, "out of memory");
	vf->port.ops = &virtio_ops;
	vf->port.wake_fd = pair->wake_fd < 0 ? RK_WAKE_POLL : pair->wake_fd;
	vf->port.copy_below = RK_COPY_BELOW;
	vf->port.reads = 1; /* short ones, and what is in no window */
	vf->port.offloads = pair->features & (RK_RING_CSUM | RK_RING_TSO4 | RK_RING_TSO6 |
					      RK_RING_ECN | RK_RING_USO | RK_RING_UFO);
	vf->mergeable = pair->features & RK_RING_MERGEABLE;
	vf->frame_bytes_max = pair->frame_bytes_max;
	vf->link_up = (const uint32_t *)(uintptr_t)pair->link_up;
	vf->windows = (const struct rk_vf_window *)(uintptr_t)pair->windows;
	vf->report = (struct rk_virtio_report *)(uintptr_t)pair->report;
	vf->received = lines_zeroed(pair->rx.size, sizeof(*vf->received));
	vf->shown = lines_zeroed(pair->rx.size, sizeof(*vf->shown));
	vf->direct_bytes = lines_zeroed(pair->rx.size, sizeof(*vf->direct_bytes));
	if (!vf->received || !vf->shown || !vf->direct_bytes ||
	    virtqueue_init(&vf->rx, &pair->rx, pair->features, pair->buffer_bytes) ||
	    virtqueue_init(&vf->tx, &pair->tx, pair->features, pair->buffer_bytes)) {
		virtio_close(&vf->port);
		return port_refuse(error, error_bytes, "out of memory");
	}
	vf->rx_notify = vf->rx.notify;
	virtio_give_all(vf);
	return &vf->port;
}
