/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The igbvf port: one queue pair of an Intel 82576 or I350 VF, by its descriptor rings.
 *
 * Advanced descriptors (Intel 82576EB datasheet, 7.1 receive, 7.2.2 transmit), each with a buffer of
 * its own that never moves. Head and tail are equal when the VF owns nothing, so one descriptor of a
 * ring stays free. Completion is seen in memory (DD); registers are written only: the tails, once a
 * burst. Here is receive; port_igbvf_tx.c has transmit, port_igbvf_wait.c what
 * a loop sleeps by. What the VF reports is bounded by what we gave
 * it: a length past its buffer or a frame without end is dropped. The descriptor that stays free shows a VF that
 * reports what it does not have; one that reports what it has and did not fill is found by driver/igbvf/report.py.
 */
#define _GNU_SOURCE
#include "igbvf.h"

#include <stdlib.h>

#define COUNT_MIN 8u /* a ring is a multiple of 128 bytes: 8.10, 8.12 */
#define COUNT_MAX 4096u
#define MAC_BYTES 12u /* both addresses: a VLAN tag follows them */
#define SPAN_MAX (RK_SEGMENTS_MAX - 2) /* descriptors of a received frame; a tag is two segments more */

/* ---- receive ---------------------------------------------------------------------------------- */

void igbvf_give(struct igbvf_port *vf, uint32_t count)
{
	struct igbvf_ring *rx = &vf->rx;
	const struct igbvf_descriptor *kept = &rx->descriptors[(rx->first - 1) & rx->mask];

	if (count == 0)
		return;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t index = (rx->first + i) & rx->mask;
		struct igbvf_descriptor *to = &rx->descriptors[index];

		dma_write64(&to->address, buffer_iova(vf, rx, index));
		dma_write32(&to->word2, 0);
		dma_write32(&to->word3, 0);
	}
	if (__builtin_expect(dma_read32(&kept->word2) & RX_DONE, 0))
		igbvf_trouble(vf, RK_IGBVF_FOREIGN);
	rx->first += count;
	igbvf_received(vf);
	dma_publish();
	/* The one before first is prepared, and stays ours. */
	mmio_write32(rx->tail, (rx->first - 1) & rx->mask);
}

/* A received frame, as found by rx_look(). */
struct found {
	uint32_t span; /* descriptors; 0: the VF is not done with it */
	uint32_t bytes;
	uint32_t tag; /* of the VLAN, where the VF took one out */
	bool tagged;
	bool whole; /* else it is not to be shown */
};

/* The frame that begins at descriptor begin, and its segments. */
static struct found rx_look(const struct igbvf_port *vf, uint32_t begin, struct iovec *segments)
{
	const struct igbvf_ring *rx = &vf->rx;
	const uint32_t room = rx->first + rx->mask - begin;
	struct found found = {.whole = true};

	for (uint32_t span = 1; span <= room; span++) {
		uint32_t index = (begin + span - 1) & rx->mask;
		uint32_t status = dma_read32(&rx->descriptors[index].word2);
		uint32_t length, tail;

		if (!(status & RX_DONE))
			return found;
		dma_consume();
		tail = dma_read32(&rx->descriptors[index].word3);
		length = tail & 0xffff;
		if (length == 0 || length > vf->buffer_bytes || status & RX_ERROR)
			found.whole = false;
		found.bytes += length;
		segments[span - 1] = (struct iovec){buffer_of(vf, rx, index), length};
		if (status & RX_END || span == SPAN_MAX || span == rx->mask) {
			found.span = span;
			found.tag = tail >> 16;
			found.tagged = status & RX_TAG;
			if (!(status & RX_END) || segments[0].iov_len < ETHERNET_HEADER_BYTES ||
			    found.bytes > RK_FRAME_MAX - IGBVF_TAG_BYTES)
				found.whole = false;
			return found;
		}
	}
	return found;
}

/* Puts the tag that the VF took out back behind the addresses (802.1Q); two segments more. */
static void rx_put_tag(uint8_t *at, const struct found *found, struct iovec *segments)
{
	struct iovec first = segments[0];

	at[0] = 0x81;
	at[1] = 0x00;
	at[2] = (uint8_t)(found->tag >> 8);
	at[3] = (uint8_t)found->tag;
	memmove(&segments[3], &segments[1], (found->span - 1) * sizeof(*segments));
	segments[0].iov_len = MAC_BYTES;
	segments[1] = (struct iovec){at, IGBVF_TAG_BYTES};
	segments[2].iov_base = (uint8_t *)first.iov_base + MAC_BYTES;
	segments[2].iov_len = first.iov_len - MAC_BYTES;
}

static uint32_t igbvf_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct igbvf_port *vf = (struct igbvf_port *)port;
	struct iovec *segments = vf->shown;
	uint32_t begin = vf->rx.first;
	uint32_t i = 0;

	if (n > RK_BURST_MAX)
		n = RK_BURST_MAX;
	while (i < n) {
		struct found found = rx_look(vf, begin, segments);
		uint32_t more = found.tagged ? 2 : 0;

		if (found.span == 0)
			break;
		if (!found.whole) {
			if (i)
				break; /* its turn comes when it is the oldest */
			vf->port.rx_missed++;
			igbvf_give(vf, found.span);
			begin = vf->rx.first;
			continue;
		}
		if (found.tagged)
			rx_put_tag(vf->tags[i], &found, segments);
		port_show(&frames[i], segments, found.span + more,
			  found.bytes + (found.tagged ? IGBVF_TAG_BYTES : 0));
		vf->shown_span[i++] = found.span;
		segments += found.span + more;
		begin += found.span;
	}
	return i;
}

static void igbvf_rx_done(struct rk_port *port, uint32_t k)
{
	struct igbvf_port *vf = (struct igbvf_port *)port;
	uint32_t count = 0;

	for (uint32_t i = 0; i < k; i++)
		count += vf->shown_span[i];
	igbvf_give(vf, count);
}

/* ---- life ------------------------------------------------------------------------------------- */

static void igbvf_close(struct rk_port *port)
{
	struct igbvf_port *vf = (struct igbvf_port *)port;

	free(vf->tx_span);
	free(vf->shown);
	free(vf);
}

static const struct rk_port_ops igbvf_ops = {
	.kind = "igbvf",
	.tx = igbvf_tx,
	.rx = igbvf_rx,
	.rx_done = igbvf_rx_done,
	.reclaim = igbvf_reclaim,
	.close = igbvf_close,
	.direct = &igbvf_direct_ops,
	.arm = igbvf_arm,
	.disarm = igbvf_disarm,
	.takes = igbvf_takes,
};

static int count_valid(uint32_t count)
{
	return count >= COUNT_MIN && count <= COUNT_MAX && (count & (count - 1)) == 0;
}

static void ring_init(struct igbvf_ring *ring, uint64_t descriptors, uint64_t buffers, uint64_t iova,
		      uint64_t tail, uint32_t count)
{
	ring->descriptors = (struct igbvf_descriptor *)(uintptr_t)descriptors;
	ring->buffers = (uint8_t *)(uintptr_t)buffers;
	ring->buffers_iova = iova;
	ring->tail = tail;
	ring->count = count;
	ring->mask = count - 1;
}

struct rk_port *port_igbvf_open(const struct rk_port_config *config, char *error,
				size_t error_bytes)
{
	const struct rk_igbvf_config *pair = config->igbvf;
	struct igbvf_port *vf;

	if (!pair)
		return port_refuse(error, error_bytes, "no queue pair of a VF was given");
	if (!count_valid(pair->rx_count) || !count_valid(pair->tx_count) ||
	    pair->buffer_bytes < IGBVF_FRAME_BYTES_MIN || pair->buffer_bytes > UINT16_MAX ||
	    pair->frame_bytes_max > pair->buffer_bytes * (pair->tx_count - 1) ||
	    pair->direct_bytes > pair->buffer_bytes)
		return port_refuse(error, error_bytes, "rings of %u and %u descriptors of %u bytes",
				   pair->rx_count, pair->tx_count, pair->buffer_bytes);
	vf = lines_zeroed(1, sizeof(*vf));
	if (!vf)
		return port_refuse(error, error_bytes, "out of memory");
	vf->port.ops = &igbvf_ops;
	vf->port.reads = 1;
	vf->port.wake_fd = pair->wake_fd < 0 ? RK_WAKE_POLL : pair->wake_fd;
	vf->port.copy_below = RK_COPY_BELOW;
	vf->buffer_bytes = pair->buffer_bytes;
	vf->frame_bytes_max = pair->frame_bytes_max;
	vf->windows = (const struct rk_vf_window *)(uintptr_t)pair->windows;
	vf->link_up = (const uint32_t *)(uintptr_t)pair->link_up;
	vf->report = (struct rk_igbvf_report *)(uintptr_t)pair->report;
	vf->direct_bytes = pair->direct_bytes;
	vf->interrupts_on = pair->interrupts_on;
	vf->interrupts_off = pair->interrupts_off;
	ring_init(&vf->rx, pair->rx_ring, pair->rx_buffers, pair->rx_buffers_iova, pair->rx_tail,
		  pair->rx_count);
	ring_init(&vf->tx, pair->tx_ring, pair->tx_buffers, pair->tx_buffers_iova, pair->tx_tail,
		  pair->tx_count);
	vf->port.offloads = igbvf_offloads(vf);
	vf->rx_tail = pair->rx_tail;
	vf->tx_span = lines_zeroed(pair->tx_count, sizeof(*vf->tx_span));
	vf->shown = lines_zeroed(pair->rx_count + 2 * RK_BURST_MAX, sizeof(*vf->shown));
	if (!vf->tx_span || !vf->shown) {
		igbvf_close(&vf->port);
		return port_refuse(error, error_bytes, "out of memory");
	}
	igbvf_give(vf, pair->rx_count); /* all: but for one they are the VF's */
	return &vf->port;
}
