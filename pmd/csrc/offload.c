/* SPDX-License-Identifier: BSD-3-Clause */
/* Judging a virtio-net header against its frame; completing a checksum. */
#include "offload.h"

#include "checksum.h"
#include "shm.h"

#define IPV4_BYTES_MAX 65535u /* an IPv6 packet of RK_FRAME_MAX is shorter than its length field can say */

/* RFC 7112: the first fragment has all headers. */
static bool fragments_fit(const struct headers *headers, uint32_t segment_bytes)
{
	return headers->end - headers->fragmentable <= segment_bytes &&
	       headers->fragmentable + IPV6_FRAGMENT_BYTES + segment_bytes <= RK_FRAME_MAX;
}

static bool headers_of_type(const struct headers *headers, const struct rk_frame *frame,
			    uint8_t gso_type)
{
	const uint8_t type = gso_type & (uint8_t)~RK_GSO_ECN;
	const bool udp = type == RK_GSO_UDP_L4 || type == RK_GSO_UDP;

	if (headers->protocol != (udp ? IP_PROTOCOL_UDP : IP_PROTOCOL_TCP))
		return false;
	if (!udp && headers->ipv6 != (type == RK_GSO_TCPV6))
		return false;
	if (type == RK_GSO_UDP && !fragments_fit(headers, frame->offload.segment_bytes))
		return false;
	return headers->ipv6 || frame->bytes - headers->network <= IPV4_BYTES_MAX;
}

bool offload_headers(struct headers *headers, const struct rk_frame *frame)
{
	const struct rk_offload *offload = &frame->offload;
	bool udp;

	if (!headers_read(headers, frame))
		return false;
	udp = headers->protocol == IP_PROTOCOL_UDP;
	if (offload->gso_type != RK_GSO_NONE && !headers_of_type(headers, frame, offload->gso_type))
		return false;
	return !(offload->flags & RK_OFFLOAD_NEEDS_CSUM) ||
	       (offload->checksum_start == headers->transport &&
		offload->checksum_offset == (udp ? UDP_CHECKSUM : TCP_CHECKSUM));
}

static enum rk_drop judge_gso(struct rk_frame *frame, uint32_t allowed)
{
	struct rk_offload *offload = &frame->offload;
	const uint8_t type = offload->gso_type & (uint8_t)~RK_GSO_ECN;
	struct headers headers;

	if (type != RK_GSO_TCPV4 && type != RK_GSO_TCPV6 && offload->gso_type != RK_GSO_UDP_L4 &&
	    offload->gso_type != RK_GSO_UDP)
		return RK_DROP_BAD_OFFLOAD;
	if (type == RK_GSO_UDP) /* fragments begin at multiples of 8 bytes: RFC 791, RFC 8200, 4.5 */
		offload->segment_bytes &= (uint16_t)~7u;
	if (offload_needs(offload) & ~(allowed | OFFLOAD_ODD))
		return RK_DROP_BAD_OFFLOAD;
	if (offload->segment_bytes == 0 || offload->segment_bytes > frame->bytes)
		return RK_DROP_BAD_OFFLOAD;
	if (!offload_headers(&headers, frame))
		return RK_DROP_BAD_OFFLOAD;
	/* 5.1.6.2.2: hdr_len is not to be relied on. */
	offload->header_bytes = (uint16_t)headers.end;
	return RK_SENT;
}

enum rk_drop offload_judge(struct rk_frame *frame, uint32_t allowed)
{
	struct rk_offload *offload = &frame->offload;

	/* 5.1.6.2.2: unknown flags are ignored, and so is what was not negotiated. */
	offload->flags &= RK_OFFLOAD_NEEDS_CSUM | RK_OFFLOAD_DATA_VALID;
	if (!(allowed & RK_RING_CSUM))
		offload->flags = 0;
	if (offload->flags & RK_OFFLOAD_NEEDS_CSUM) {
		uint32_t field = (uint32_t)offload->checksum_start + offload->checksum_offset;

		if (offload->checksum_start < ETHERNET_BYTES || field + 2 > frame->bytes)
			return RK_DROP_BAD_OFFLOAD;
	} else { /* MUST NOT be used */
		offload->checksum_start = 0;
		offload->checksum_offset = 0;
	}
	if (offload->gso_type != RK_GSO_NONE)
		return judge_gso(frame, allowed);
	offload->header_bytes = 0;
	offload->segment_bytes = 0;
	return RK_SENT;
}

void offload_read(struct offload_reader *from, uint8_t *to, size_t bytes)
{
	while (bytes) {
		size_t left = from->segment->iov_len - from->offset;
		size_t part = bytes < left ? bytes : left;

		shm_copy_in(to, shm_at(from->segment->iov_base, from->offset), part);
		to += part;
		bytes -= part;
		from->offset += part;
		if (from->offset == from->segment->iov_len) {
			from->segment++;
			from->offset = 0;
		}
	}
}

void offload_skip(struct offload_reader *from, size_t bytes)
{
	bytes += from->offset;
	while (bytes && bytes >= from->segment->iov_len) {
		bytes -= from->segment->iov_len;
		from->segment++;
	}
	from->offset = bytes;
}

/* 5.1.6.2: the field holds the sum of what is before checksum_start, the pseudo header's. */
static void complete_checksum(uint8_t *bytes, uint32_t count, const struct rk_offload *offload)
{
	const uint32_t start = offload->checksum_start;

	checksum_store(bytes + start + offload->checksum_offset,
		       checksum_sum(bytes + start, count - start));
}

enum rk_drop offload_make(const struct rk_frame *frame, uint32_t first,
			  const struct offload_room *room, struct offload_made *made)
{
	struct offload_reader from = {.segment = frame->segments};

	if (frame->offload.gso_type == RK_GSO_UDP)
		return fragment_make(frame, first, room, made);
	if (frame->offload.gso_type != RK_GSO_NONE)
		return segment_make(frame, first, room, made);
	*made = (struct offload_made){.total = 1};
	if (first > 0 || room->frame_count == 0 || room->memory_bytes < frame->bytes)
		return RK_SENT;
	offload_read(&from, room->memory, frame->bytes);
	if (frame->offload.flags & RK_OFFLOAD_NEEDS_CSUM)
		complete_checksum(room->memory, frame->bytes, &frame->offload);
	room->segments[0] = (struct iovec){room->memory, frame->bytes};
	room->frames[0] = (struct rk_frame){
		.segments = room->segments, .segment_count = 1, .bytes = frame->bytes};
	made->frames = 1;
	made->memory_bytes = frame->bytes;
	return RK_SENT;
}
