/* SPDX-License-Identifier: BSD-3-Clause */
/* What a virtio-net header asks for: judged, and done here where the other side does not do it. */
#ifndef OFFLOAD_H
#define OFFLOAD_H

#include "headers.h"

/*
 * Judges frame->offload, a private copy of what the other side wrote (5.1.6), against the frame. allowed: the
 * RK_RING_* offloads that were negotiated. RK_SENT, and then it can be relied upon:
 *   - flags holds known bits only; NEEDS_CSUM only where allowed, and then start and offset are of two bytes behind
 *     the Ethernet header and within the frame;
 *   - gso_type is 0, or allowed: then the frame's headers are of that protocol, a checksum is theirs,
 *     segment_bytes is not 0, header_bytes is where the payload starts; of RK_GSO_UDP segment_bytes is a multiple
 *     of 8, all headers fit into the first fragment (RFC 7112), and no fragment is longer than any frame;
 *   - what flags and gso_type leave without meaning is 0.
 * Else RK_DROP_BAD_OFFLOAD.
 */
enum rk_drop offload_judge(struct rk_frame *frame, uint32_t allowed);

/* Nobody takes a frame to be cut whose checksum is already there (5.1.6.2 wants NEEDS_CSUM with it), but it can be
 * cut here. */
#define OFFLOAD_ODD (1u << 31)

/* The RK_RING_* offloads that a judged offload takes, or OFFLOAD_ODD. */
static inline uint32_t offload_needs(const struct rk_offload *offload)
{
	uint32_t needs = offload->flags & RK_OFFLOAD_NEEDS_CSUM ? RK_RING_CSUM : 0;

	if (offload->gso_type == RK_GSO_NONE)
		return needs;
	if (!needs)
		needs = OFFLOAD_ODD;
	if (offload->gso_type & RK_GSO_ECN)
		needs |= RK_RING_ECN;
	switch (offload->gso_type & ~RK_GSO_ECN) {
	case RK_GSO_TCPV4:
		return needs | RK_RING_TSO4;
	case RK_GSO_TCPV6:
		return needs | RK_RING_TSO6;
	case RK_GSO_UDP_L4:
		return needs | RK_RING_USO;
	case RK_GSO_UDP:
		return needs | RK_RING_UFO;
	}
	return needs;
}

/* Whether a frame asks for nothing: then all of its offload is 0. */
static inline bool offload_plain(struct rk_frame *frame)
{
	if (frame->offload.flags | frame->offload.gso_type)
		return false;
	frame->offload = (struct rk_offload){0};
	frame->done_here = false;
	return true;
}

/* Where plain frames are made: one segment each, in private memory. */
struct offload_room {
	struct rk_frame *frames;
	struct iovec *segments;
	uint8_t *memory;
	uint32_t frame_count;  /* that may be made */
	uint32_t memory_bytes; /* that may be used */
	uint32_t identification; /* of IPv6 fragments: another frame's is another */
};

/* Memory with which at least one frame can be made of any. */
#define OFFLOAD_MEMORY_MIN (RK_FRAME_MAX + HEADERS_MAX)

/* What was made. */
struct offload_made {
	uint32_t frames;
	uint32_t memory_bytes;
	uint32_t total; /* frames that the whole makes */
};

/*
 * Makes the plain frames that a judged frame stands for, from the first-th on, as many as there is room for: its
 * checksum completed, or cut into segments or fragments. A frame in VM1's memory is read again and judged again:
 * RK_DROP_BAD_OFFLOAD where it is no longer what it was.
 */
enum rk_drop offload_make(const struct rk_frame *frame, uint32_t first,
			  const struct offload_room *room, struct offload_made *made);

/* Reads a frame's bytes front to back. */
struct offload_reader {
	const struct iovec *segment;
	size_t offset;
};

void offload_read(struct offload_reader *from, uint8_t *to, size_t bytes);
void offload_skip(struct offload_reader *from, size_t bytes);

/* Reads the headers of a frame with a judged offload; false where they are not those that it is of. */
bool offload_headers(struct headers *headers, const struct rk_frame *frame);

/* The sum of the pseudo header of bytes of TCP or UDP: addresses, protocol and length, in the order in which the machine
 * adds. frame begins with the headers. */
uint64_t offload_pseudo_sum(const struct headers *headers, const uint8_t *frame, uint32_t bytes);

/* offload_make() of a frame with a gso_type: RK_GSO_UDP, and others. */
enum rk_drop fragment_make(const struct rk_frame *frame, uint32_t first,
			   const struct offload_room *room, struct offload_made *made);
enum rk_drop segment_make(const struct rk_frame *frame, uint32_t first,
			  const struct offload_room *room, struct offload_made *made);

#endif
