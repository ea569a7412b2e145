/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The virtio-net port receives into VM1's memory: a chain of two descriptors for each of its buffers. The
 * device's header comes into a buffer of ours, to be judged where VM1 cannot change it, and of the size that
 * this device has, not VM1's; the frame goes into all that VM1 posted behind room for its own header.
 *
 * A frame that the device spreads over several buffers (5.1.6.4) begins each further one in our memory too:
 * those bytes VM1 expects exactly there where a first buffer has its header. A device that uses buffers in
 * another order than it was given them cannot be served so, since VM1's are returned in order.
 */
#define _GNU_SOURCE
#include "virtio_net.h"
#include "windows.h"

#define FRAME_BYTES_ORDINARY 1514u /* with a header what 5.1.6.3.1 wants of a buffer */
#define CHAIN 2u                   /* descriptors of a buffer */

static void direct_halt(struct rk_port *port)
{
	struct virtio_port *vf = (struct virtio_port *)port;

	vf->rx.notify = (uint64_t)(uintptr_t)&vf->nowhere;
}

static void direct_mode(struct rk_port *port, bool direct)
{
	struct virtio_port *vf = (struct virtio_port *)port;

	vf->received_first = 0;
	vf->received_count = 0;
	vf->direct_due = 0;
	vf->rx.notify = vf->rx_notify;
	virtqueue_restart(&vf->rx);
	if (!direct)
		virtio_give_all(vf);
}

/* Where the device cannot spread a frame, any that it would put into a buffer of ours has to fit. */
static uint64_t direct_suits(const struct rk_port *port, const struct iovec *memory)
{
	const struct virtio_port *vf = (const struct virtio_port *)port;
	uint32_t least = vf->rx.buffer_bytes - HEADER_BYTES;

	if (least > vf->frame_bytes_max)
		least = vf->frame_bytes_max;
	if (vf->mergeable || least < FRAME_BYTES_ORDINARY)
		least = FRAME_BYTES_ORDINARY;
	return memory->iov_len >= least && !vf->disordered ? window_iova(vf->windows, memory) : 0;
}

static uint32_t direct_room(const struct rk_port *port)
{
	const struct virtio_port *vf = (const struct virtio_port *)port;
	const uint32_t given = vf->rx.next - vf->direct_due;

	if (vf->rx.trouble || vf->disordered)
		return 0;
	return (vf->rx.mask + 1 - given) / CHAIN - vf->received_count;
}

static void direct_post(struct rk_port *port, const struct rk_posting *postings, uint32_t n)
{
	struct virtio_port *vf = (struct virtio_port *)port;
	struct virtqueue *rx = &vf->rx;

	for (uint32_t i = 0; i < n; i++) {
		const uint16_t id = (uint16_t)(rx->next & rx->mask);

		vf->direct_bytes[id] = HEADER_BYTES + postings[i].bytes;
		virtqueue_begin(rx, id, CHAIN, 0);
		virtqueue_describe(rx, id, 0, virtqueue_buffer_iova(rx, id), HEADER_BYTES,
				   VIRTQUEUE_NEXT | VIRTQUEUE_WRITE);
		virtqueue_describe(rx, id, 1, postings[i].iova, postings[i].bytes, VIRTQUEUE_WRITE);
	}
	virtqueue_publish(rx);
}

/* Takes what the device has filled, up to the first that it was not its turn to use. */
static void direct_take(struct virtio_port *vf)
{
	struct virtqueue *rx = &vf->rx;
	struct virtqueue_used used;

	while (!vf->disordered && virtqueue_take(rx, &used)) {
		const uint32_t at = vf->received_first + vf->received_count;

		if (used.id != (vf->direct_due & rx->mask)) {
			vf->disordered = true;
			vf->port.rx_missed++;
			return;
		}
		if (used.whole)
			used.bytes = vf->direct_bytes[used.id];
		if (used.bytes == 0 || used.bytes > vf->direct_bytes[used.id]) {
			rx->trouble = RK_VIRTIO_BAD_LENGTH;
			break;
		}
		rx->span[used.id] = 0;
		vf->direct_due += CHAIN;
		vf->received[at & rx->mask] = (struct virtio_received){used.id, used.bytes};
		vf->received_count++;
	}
	if (rx->trouble)
		virtio_fail(vf, rx->trouble);
}

/* Tells of the oldest frame, which has so many buffers. */
static void direct_tell(struct virtio_port *vf, uint32_t span, struct rk_filled *filled)
{
	uint32_t bytes = 0;
	bool whole;

	for (uint32_t i = 0; i < span; i++) {
		const struct virtio_received *part =
			&vf->received[(vf->received_first + i) & vf->rx.mask];

		filled[i] = (struct rk_filled){
			.bytes = part->bytes - (i ? 0 : HEADER_BYTES),
			.more = i + 1 < span,
			.front = i ? virtqueue_buffer(&vf->rx, part->id) : NULL,
		};
		bytes += filled[i].bytes;
	}
	whole = filled[0].bytes >= ETHERNET_HEADER_BYTES && bytes <= RK_FRAME_MAX;
	vf->port.rx_missed += !whole;
	for (uint32_t i = 0; !whole && i < span; i++)
		filled[i] = (struct rk_filled){0};
}

static uint32_t direct_filled(struct rk_port *port, struct rk_filled *filled, uint32_t n)
{
	struct virtio_port *vf = (struct virtio_port *)port;
	uint32_t told = 0;

	direct_take(vf);
	while (!vf->rx.trouble) {
		const uint32_t span = virtio_rx_span(vf, 0);

		if (span == 0 || span > n - told)
			break;
		direct_tell(vf, span, &filled[told]);
		vf->received_first += span;
		vf->received_count -= span;
		told += span;
	}
	return told == 0 && vf->disordered ? RK_UNSUITED : told;
}

const struct rk_direct_ops virtio_direct_ops = {
	.halt = direct_halt,
	.mode = direct_mode,
	.suits = direct_suits,
	.room = direct_room,
	.post = direct_post,
	.filled = direct_filled,
};
