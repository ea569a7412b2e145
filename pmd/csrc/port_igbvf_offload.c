/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The igbvf port has the VF complete checksums, and cut TCP frames into segments (Intel 82576EB datasheet: 7.2.2.2
 * context descriptors, 7.2.4 segmentation, 7.2.5 checksums).
 *
 * The headers of such a frame are copied into a buffer of the port's own, and judged and mended there: VM1 cannot
 * change what was judged, and nobody changes anything in VM1's memory. What is behind the headers is sent
 * from there, if the VF reaches it, and else copied as well.
 */
#define _GNU_SOURCE
#include "checksum.h"
#include "igbvf.h"
#include "offload.h"
#include "windows.h"

/* Context descriptor: 7.2.2.2. */
#define NETWORK_OFFSET_SHIFT 9     /* MACLEN, above IPLEN */
#define KIND_IPV4 (1u << 10)       /* TUCMD.IPV4 */
#define KIND_TCP (1u << 11)        /* TUCMD.L4T; 0: UDP */
#define TRANSPORT_BYTES_SHIFT 8    /* L4LEN */
#define SEGMENT_BYTES_SHIFT 16     /* MSS */

#define HELD_PIECES_MAX 24u /* as many as Linux makes of a frame to be cut, and some; in more it is copied */
#define PIECE_BYTES_MAX 32768u /* of one descriptor, whose length has 16 bits */
#define PIECES_MAX (RK_SEGMENTS_MAX + RK_FRAME_MAX / PIECE_BYTES_MAX)
#define NETWORK_BYTES_MAX 65535u /* an IP packet, as long as its headers can say */
/* Shorter segments are no network's (RFC 9293, 3.7.1: 536 where the peer says nothing), and many frames of one. */
#define SEGMENT_BYTES_MIN 256u

/* A frame that was judged: its headers, and what is behind them. */
struct asking {
	struct headers headers;
	struct igbvf_context context;
	uint32_t slot;            /* of the context */
	uint32_t command, status; /* of all its data descriptors */
	struct rk_frame payload;
	struct iovec pieces[PIECES_MAX];
	uint64_t iovas[HELD_PIECES_MAX]; /* of the pieces, if the payload is held */
};

uint32_t igbvf_offloads(const struct igbvf_port *vf)
{
	const uint32_t copied = RK_FRAME_MAX / vf->buffer_bytes + 1;
	const uint32_t held = 1 + HELD_PIECES_MAX;

	/* With a context, and the one that stays free. */
	if (vf->buffer_bytes < HEADERS_MAX || vf->tx.count < 2 + (copied > held ? copied : held))
		return 0;
	return RK_RING_CSUM | RK_RING_TSO4 | RK_RING_TSO6;
}

/* Reads the headers; whether the VF does what the frame asks. One tag at most, and no IPv6 extension headers: what the VF
 * makes of those no datasheet says. */
static bool read_headers(const struct igbvf_port *vf, const struct rk_frame *frame,
			 struct headers *headers)
{
	const struct rk_offload *offload = &frame->offload;

	if (!offload_headers(headers, frame))
		return false;
	if (headers->network > ETHERNET_BYTES + TAG_BYTES)
		return false;
	if (headers->ipv6 && headers->transport != headers->network + IPV6_BYTES)
		return false;
	if (offload->gso_type == RK_GSO_NONE)
		return true;
	return offload->segment_bytes >= SEGMENT_BYTES_MIN &&
	       offload->segment_bytes + headers->end <= vf->frame_bytes_max &&
	       offload->segment_bytes + headers->end < frame->bytes &&
	       frame->bytes - headers->network <= NETWORK_BYTES_MAX;
}

bool igbvf_takes(const struct rk_port *port, const struct rk_frame *frame)
{
	struct headers headers;

	return read_headers((const struct igbvf_port *)port, frame, &headers);
}

/*
 * 7.2.4: each segment's lengths and sums are added to headers that have none yet. So the TCP checksum is the pseudo
 * header's without a length, whatever VM1 wrote there.
 */
static void mend(struct headers *headers)
{
	uint8_t *network = headers->bytes + headers->network;
	const uint16_t sum = (uint16_t)~checksum_of(offload_pseudo_sum(headers, headers->bytes, 0));

	memcpy(headers->bytes + headers->transport + TCP_CHECKSUM, &sum, sizeof(sum));
	if (headers->ipv6) {
		put16(network + IPV6_LENGTH, 0);
		return;
	}
	put16(network + IPV4_LENGTH, 0);
	put16(network + IPV4_CHECKSUM, 0);
}

/* What the descriptors say. */
static void describe(struct asking *asking, const struct rk_frame *frame)
{
	struct headers *headers = &asking->headers;
	const bool cut = frame->offload.gso_type != RK_GSO_NONE;

	asking->context = (struct igbvf_context){
		.lengths = headers->network << NETWORK_OFFSET_SHIFT |
			   (headers->transport - headers->network),
		.kinds = TX_ADVANCED | TX_CONTEXT | (headers->ipv6 ? 0 : KIND_IPV4) |
			 (headers->protocol == IP_PROTOCOL_TCP ? KIND_TCP : 0),
	};
	asking->slot = cut;
	asking->command = 0;
	asking->status = TX_TRANSPORT_CHECKSUM | asking->slot << TX_CONTEXT_SHIFT;
	if (!cut) {
		asking->status |= frame->bytes << TX_PAYLOAD_SHIFT;
		return;
	}
	mend(headers);
	asking->context.cut = (uint32_t)frame->offload.segment_bytes << SEGMENT_BYTES_SHIFT |
			      (headers->end - headers->transport) << TRANSPORT_BYTES_SHIFT;
	asking->command = TX_CUT;
	asking->status |= (frame->bytes - headers->end) << TX_PAYLOAD_SHIFT |
			  (headers->ipv6 ? 0 : TX_IP_CHECKSUM);
}

/* Finds what is behind the headers, in pieces that a descriptor can describe. */
static void find_payload(struct asking *asking, const struct rk_frame *frame)
{
	uint32_t skip = asking->headers.end, count = 0;

	for (uint32_t i = 0; i < frame->segment_count; i++) {
		struct iovec left = frame->segments[i];
		const size_t skipped = skip < left.iov_len ? skip : left.iov_len;

		skip -= (uint32_t)skipped;
		left.iov_base = (uint8_t *)left.iov_base + skipped;
		left.iov_len -= skipped;
		while (left.iov_len) {
			struct iovec *piece = &asking->pieces[count++];

			*piece = left;
			if (piece->iov_len > PIECE_BYTES_MAX)
				piece->iov_len = PIECE_BYTES_MAX;
			left.iov_base = (uint8_t *)left.iov_base + piece->iov_len;
			left.iov_len -= piece->iov_len;
		}
	}
	asking->payload = (struct rk_frame){.segments = asking->pieces,
					    .segment_count = count,
					    .bytes = frame->bytes - asking->headers.end};
}

/* Whether the VF can and should read the payload where it is; then iovas has its pieces' addresses. Where there is none, it
 * is about the headers, although they are copied: so the port counts none that it would have to copy. */
static bool holdable(const struct igbvf_port *vf, const struct rk_frame *frame, struct asking *asking)
{
	if (frame->bytes < vf->port.copy_below || asking->payload.segment_count > HELD_PIECES_MAX)
		return false;
	if (asking->payload.bytes == 0)
		return window_iova(vf->windows, &frame->segments[0]) != 0;
	return window_iovas(vf->windows, &asking->payload, asking->iovas);
}

/* Has the VF know the frame's context. */
static void tell_context(struct igbvf_port *vf, const struct asking *asking)
{
	struct igbvf_ring *tx = &vf->tx;
	struct igbvf_descriptor *to = &tx->descriptors[tx->next++ & tx->mask];

	vf->contexts[asking->slot] = asking->context;
	dma_write64(&to->address, asking->context.lengths);
	dma_write32(&to->word2, asking->context.kinds);
	dma_write32(&to->word3, asking->context.cut | asking->slot << TX_CONTEXT_SHIFT);
}

/* One descriptor for the headers, and one a piece of the payload. */
static void hold(struct igbvf_port *vf, const struct asking *asking)
{
	struct igbvf_ring *tx = &vf->tx;
	const struct headers *headers = &asking->headers;
	const uint32_t index = tx->next++ & tx->mask;
	const uint32_t count = asking->payload.segment_count;

	memcpy(buffer_of(vf, tx, index), headers->bytes, headers->end);
	igbvf_tx_fill(tx, index, buffer_iova(vf, tx, index), headers->end | asking->command,
		      asking->status, count == 0);
	for (uint32_t i = 0; i < count; i++)
		igbvf_tx_fill(tx, tx->next++, asking->iovas[i],
			      (uint32_t)asking->pieces[i].iov_len | asking->command, asking->status,
			      i + 1 == count);
	vf->port.tx_held++;
}

/* All of the frame in the buffers of span descriptors, which lie side by side but for the ring's end. */
static void copy(struct igbvf_port *vf, const struct asking *asking, uint32_t span)
{
	struct igbvf_ring *tx = &vf->tx;
	const struct headers *headers = &asking->headers;
	const uint32_t at = (tx->next & tx->mask) * vf->buffer_bytes;
	uint32_t left = headers->end + asking->payload.bytes;

	memcpy(tx->buffers + at, headers->bytes, headers->end);
	port_copy_around(tx->buffers, tx->count * vf->buffer_bytes, at + headers->end,
			 &asking->payload, vf->port.flush);
	for (uint32_t i = 0; i < span; i++) {
		const uint32_t index = tx->next++ & tx->mask;
		const uint32_t part = left < vf->buffer_bytes ? left : vf->buffer_bytes;

		igbvf_tx_fill(tx, index, buffer_iova(vf, tx, index), part | asking->command,
			      asking->status, i + 1 == span);
		left -= part;
	}
}

bool igbvf_tx_asking(struct igbvf_port *vf, struct rk_frame *frame)
{
	struct igbvf_ring *tx = &vf->tx;
	const uint32_t first = tx->next;
	uint32_t span = (frame->bytes + vf->buffer_bytes - 1) / vf->buffer_bytes;
	struct asking asking;
	bool held, known;

	if (frame->offload.gso_type == RK_GSO_NONE && frame->bytes > vf->frame_bytes_max) {
		frame->verdict = RK_DROP_OVERSIZE;
		return true;
	}
	if (!read_headers(vf, frame, &asking.headers)) { /* not what they were for takes() */
		frame->verdict = RK_DROP_BAD_OFFLOAD;
		return true;
	}
	find_payload(&asking, frame);
	held = holdable(vf, frame, &asking);
	if (held)
		span = 1 + asking.payload.segment_count;
	if (tx->count - 1 - (tx->next - tx->first) < 1 + span)
		return false;
	describe(&asking, frame);
	known = memcmp(&vf->contexts[asking.slot], &asking.context, sizeof(asking.context)) == 0;
	if (!known)
		tell_context(vf, &asking);
	if (held)
		hold(vf, &asking);
	else
		copy(vf, &asking, span);
	if (held && asking.payload.bytes)
		frame->verdict = RK_HELD;
	vf->tx_span[first & tx->mask] =
		(uint16_t)((tx->next - first) | (frame->verdict == RK_HELD ? SPAN_HELD : 0));
	return true;
}
