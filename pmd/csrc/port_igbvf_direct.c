/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The igbvf port receives into VM1's memory: a descriptor for each of its buffers, which has room for the most
 * that the VF writes there. That is what its PF lets it receive (VMOLR.RLPML), where that is known, and
 * else what it writes to one descriptor, SRRCTL's size: then a longer frame takes several, and is none for VM1.
 * A VLAN tag that the VF took out is put back in place.
 */
#define _GNU_SOURCE
#include "igbvf.h"
#include "windows.h"

static void direct_halt(struct rk_port *port)
{
	struct igbvf_port *vf = (struct igbvf_port *)port;

	vf->rx.tail = (uint64_t)(uintptr_t)&vf->nowhere;
}

static void direct_mode(struct rk_port *port, bool direct)
{
	struct igbvf_port *vf = (struct igbvf_port *)port;

	vf->rx.tail = vf->rx_tail;
	vf->in_long = false;
	vf->rx.first = 0;
	vf->rx.next = 0;
	igbvf_received(vf);
	if (!direct)
		igbvf_give(vf, vf->rx.count);
}

static uint64_t direct_suits(const struct rk_port *port, const struct iovec *memory)
{
	const struct igbvf_port *vf = (const struct igbvf_port *)port;

	if (!vf->direct_bytes || memory->iov_len < vf->direct_bytes)
		return 0;
	return window_iova(vf->windows, memory);
}

static uint32_t direct_room(const struct rk_port *port)
{
	const struct igbvf_ring *rx = &((const struct igbvf_port *)port)->rx;

	return rx->count - 1 - (rx->next - rx->first);
}

static void direct_post(struct rk_port *port, const struct rk_posting *postings, uint32_t n)
{
	struct igbvf_port *vf = (struct igbvf_port *)port;
	struct igbvf_ring *rx = &vf->rx;

	for (uint32_t i = 0; i < n; i++) {
		struct igbvf_descriptor *to = &rx->descriptors[rx->next++ & rx->mask];

		dma_write64(&to->address, postings[i].iova);
		dma_write32(&to->word2, 0);
		dma_write32(&to->word3, 0);
	}
	dma_publish();
	mmio_write32(rx->tail, rx->next & rx->mask);
}

/* The bytes of the frame that a written-back descriptor has, as struct rk_filled tells them. */
static uint32_t frame_bytes(struct igbvf_port *vf, uint32_t status, uint32_t bytes)
{
	const bool part = vf->in_long || !(status & RX_END);

	vf->in_long = !(status & RX_END);
	if (bytes > vf->direct_bytes || (part && vf->direct_bytes < vf->buffer_bytes)) {
		igbvf_trouble(vf, RK_IGBVF_OVERRUN);
		return RK_UNSUITED;
	}
	if (status & RX_TAG && bytes + IGBVF_TAG_BYTES > vf->direct_bytes)
		return RK_UNSUITED;
	if (part || status & RX_ERROR || bytes < ETHERNET_HEADER_BYTES) {
		vf->port.rx_missed += !vf->in_long;
		return 0;
	}
	return bytes;
}

static uint32_t direct_filled(struct rk_port *port, struct rk_filled *filled, uint32_t n)
{
	struct igbvf_port *vf = (struct igbvf_port *)port;
	struct igbvf_ring *rx = &vf->rx;
	uint32_t i;

	for (i = 0; i < n && rx->first != rx->next; i++) {
		const struct igbvf_descriptor *from = &rx->descriptors[rx->first & rx->mask];
		const uint32_t status = dma_read32(&from->word2);
		uint32_t length;

		if (!(status & RX_DONE))
			break;
		dma_consume();
		length = dma_read32(&from->word3);
		filled[i] = (struct rk_filled){
			.bytes = frame_bytes(vf, status, length & 0xffff),
			.tag = status & RX_TAG ? 0x81000000u | length >> 16 : 0};
		rx->first++;
	}
	igbvf_received(vf);
	return i;
}

const struct rk_direct_ops igbvf_direct_ops = {
	.halt = direct_halt,
	.mode = direct_mode,
	.suits = direct_suits,
	.room = direct_room,
	.post = direct_post,
	.filled = direct_filled,
};
