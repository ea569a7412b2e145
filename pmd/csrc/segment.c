/* SPDX-License-Identifier: BSD-3-Clause */
/* Segmentation: one long frame's headers before each part of its payload, with lengths, numbers and checksums of
 * their own (TCP over IPv4 and IPv6; UDP: each part a datagram). */
#include "offload.h"

#include "checksum.h"
#include "shm.h"

/* Where fields are, beside those of headers.h: RFC 791, 8200, 9293, 768. */
#define IPV4_ID 4u
#define IPV4_ADDRESSES 12u
#define IPV6_ADDRESSES 8u
#define TCP_SEQUENCE 4u
#define TCP_FLAGS 13u
#define TCP_FIN 0x01u
#define TCP_PSH 0x08u
#define TCP_CWR 0x80u

/* One frame of the series. */
struct part {
	uint32_t index, offset; /* of its payload in the whole payload */
	uint32_t bytes;         /* of its payload */
	bool last;
};

static void number_network(const struct headers *headers, const struct part *part, uint8_t *frame)
{
	uint8_t *ip = frame + headers->network;
	uint32_t bytes = headers->end - headers->network + part->bytes;

	if (headers->ipv6) {
		put16(ip + IPV6_LENGTH, bytes - IPV6_BYTES);
		return;
	}
	put16(ip + IPV4_LENGTH, bytes);
	put16(ip + IPV4_ID, get16(ip + IPV4_ID) + part->index);
	put16(ip + IPV4_CHECKSUM, 0);
	checksum_store(ip + IPV4_CHECKSUM, checksum_sum(ip, headers->transport - headers->network));
}

/* FIN and PSH belong to the end of the data, CWR to its beginning (RFC 3168, 6.1.2). */
static void number_tcp(const struct part *part, uint8_t *tcp)
{
	put32(tcp + TCP_SEQUENCE, get32(tcp + TCP_SEQUENCE) + part->offset);
	if (!part->last)
		tcp[TCP_FLAGS] &= (uint8_t)~(TCP_FIN | TCP_PSH);
	if (part->index)
		tcp[TCP_FLAGS] &= (uint8_t)~TCP_CWR;
}

uint64_t offload_pseudo_sum(const struct headers *headers, const uint8_t *frame, uint32_t bytes)
{
	const uint8_t *ip = frame + headers->network;
	uint8_t rest[4];

	put16(rest, headers->protocol);
	put16(rest + 2, bytes);
	return checksum_sum(rest, sizeof(rest)) +
	       (headers->ipv6 ? checksum_sum(ip + IPV6_ADDRESSES, 32)
			      : checksum_sum(ip + IPV4_ADDRESSES, 8));
}

/* headers->end + part->bytes of a whole frame; its payload is already in place. */
static void finish(const struct headers *headers, const struct part *part, uint8_t *frame)
{
	uint8_t *transport = frame + headers->transport;
	const uint32_t bytes = headers->end - headers->transport + part->bytes;
	uint8_t *checksum = transport + UDP_CHECKSUM;

	memcpy(frame, headers->bytes, headers->end);
	number_network(headers, part, frame);
	if (headers->protocol == IP_PROTOCOL_TCP) {
		number_tcp(part, transport);
		checksum = transport + TCP_CHECKSUM;
	} else {
		put16(transport + UDP_LENGTH, bytes);
	}
	put16(checksum, 0);
	checksum_store(checksum,
		       offload_pseudo_sum(headers, frame, bytes) + checksum_sum(transport, bytes));
}

enum rk_drop segment_make(const struct rk_frame *frame, uint32_t first,
			  const struct offload_room *room, struct offload_made *made)
{
	const uint32_t segment_bytes = frame->offload.segment_bytes;
	struct offload_reader from = {.segment = frame->segments};
	struct headers headers;
	uint32_t payload;

	*made = (struct offload_made){0};
	if (!offload_headers(&headers, frame))
		return RK_DROP_BAD_OFFLOAD;
	payload = frame->bytes - headers.end;
	made->total = payload ? (payload + segment_bytes - 1) / segment_bytes : 1;
	if (first >= made->total)
		return RK_SENT;
	offload_skip(&from, headers.end + (size_t)first * segment_bytes);
	for (uint32_t i = 0; i < room->frame_count && first + i < made->total; i++) {
		struct part part = {first + i, (first + i) * segment_bytes, segment_bytes, false};
		uint8_t *to = room->memory + made->memory_bytes;

		part.last = part.index + 1 == made->total;
		if (part.last)
			part.bytes = payload - part.offset;
		if (headers.end + part.bytes > room->memory_bytes - made->memory_bytes)
			break;
		offload_read(&from, to + headers.end, part.bytes);
		finish(&headers, &part, to);
		room->segments[i] = (struct iovec){to, headers.end + part.bytes};
		room->frames[i] = (struct rk_frame){.segments = &room->segments[i],
						    .segment_count = 1,
						    .bytes = headers.end + part.bytes};
		made->frames++;
		made->memory_bytes += headers.end + part.bytes;
	}
	return RK_SENT;
}
