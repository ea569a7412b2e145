/* SPDX-License-Identifier: BSD-3-Clause */
/* Frames of the plain chains that VM1 transmits. */
#ifndef PLAIN_FRAMES_H
#define PLAIN_FRAMES_H

#include "isa.h"
#include "plain_avx2.h"
#include "plain_frame.h"

/*
 * Makes frames as long as the chains are plain, as most are: one readable descriptor with header and frame,
 * all of it in one region. Of another chain nothing is decided here: chain_walk() looks at it anew.
 * Compiled for chains in the region of the last buffer, and for those in any.
 */
static inline uint32_t make_plain(struct rk_queue *queue, const struct head *heads,
				  const struct packed_desc *descs, uint32_t count,
				  struct rk_frame *frames, struct iovec *segments, const bool any)
{
	const struct rk_region near = ring_near(queue, RK_READ);
	const uint32_t header = queue->header_bytes, size = queue->size;
	const uint32_t least = header + ETHERNET_HEADER_BYTES;
	struct shm *const table = queue->desc;
	uint64_t last = 0;
	uint32_t i;

	for (i = 0; i < count; i++) {
		const struct packed_desc *desc = LAYOUT_PACKED ? &descs[i] : NULL;
		struct plain plain;
		uint64_t host;

		if (!ring_plain(heads[i].id, size, desc, 0, &plain, table) ||
		    plain.length - least > RK_FRAME_MAX - ETHERNET_HEADER_BYTES ||
		    !(any ? plain_anywhere(queue, RK_READ, &plain, &host)
			  : plain_near(&near, &plain, &host)))
			break;
		segments[i] = (struct iovec){(void *)(uintptr_t)(host + header),
					     plain.length - header};
		set_frame(&frames[i], &segments[i], 1, plain.length - header);
		last = plain.address;
	}
	if (any && i)
		queue->hint = map_search(queue->map, last);
	return i;
}

/* Functions of their own, so that all they need has a register. */
static __attribute__((noinline)) uint32_t near_frames(struct rk_queue *queue,
						      const struct head *heads,
						      const struct packed_desc *descs,
						      uint32_t count, struct rk_frame *frames,
						      struct iovec *segments)
{
	return make_plain(queue, heads, descs, count, frames, segments, false);
}

static __attribute__((noinline)) uint32_t any_frames(struct rk_queue *queue,
						     const struct head *heads,
						     const struct packed_desc *descs,
						     uint32_t count, struct rk_frame *frames,
						     struct iovec *segments)
{
	return make_plain(queue, heads, descs, count, frames, segments, true);
}

/* Those in the region of the last buffer, by the instructions chosen. */
static inline uint32_t near_frames_by_isa(struct rk_queue *queue, const struct head *heads,
					  const struct packed_desc *descs, uint32_t count,
					  struct rk_frame *frames, struct iovec *segments)
{
	uint32_t n = 0;

#if defined(__x86_64__) && LAYOUT_PACKED
	if (isa() == ISA_AVX2)
		n = near_frames_avx2(queue, descs, count, frames, segments);
	if (n == count)
		return n;
#endif
	return n + near_frames(queue, heads + n, LAYOUT_PACKED ? descs + n : descs, count - n,
			       frames + n, segments + n);
}

static inline uint32_t plain_frames(struct rk_queue *queue, const struct head *heads,
				    const struct packed_desc *descs, uint32_t count,
				    struct rk_frame *frames, struct iovec *segments)
{
	const bool scattered = queue->scattered, first = !queue->hint;
	uint32_t n = 0, any;

	if (scattered)
		queue->scattered--;
	else
		n = near_frames_by_isa(queue, heads, descs, count, frames, segments);
	if (n == count)
		return n;
	any = any_frames(queue, heads + n, LAYOUT_PACKED ? descs + n : descs, count - n,
			 frames + n, segments + n);
	if (any && !scattered && !first)
		queue->scattered = SCATTERED_BURSTS;
	return n + any;
}

#endif
