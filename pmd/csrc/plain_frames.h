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
 * Compiled for each reach.
 */
static inline uint32_t make_plain(struct rk_queue *queue, const struct head *heads,
				  const struct packed_desc *descs, uint32_t count,
				  struct rk_frame *frames, struct iovec *segments,
				  const enum reach reach)
{
	const struct rk_region near = ring_near(queue, RK_READ);
	const struct map_view view = map_view(queue->map, RK_READ);
	const uint32_t header = queue->header_bytes;
	struct shm *const table = queue->desc;
	uint64_t last = 0;
	uint32_t i;

	for (i = 0; i < count; i++) {
		const struct packed_desc *desc = LAYOUT_PACKED ? &descs[i] : NULL;
		struct plain plain;
		uint64_t host, bytes;

		if (!ring_plain(heads[i].id, desc, 0, &plain, table))
			break;
		bytes = (uint32_t)(plain.length - header);
		if ((uint32_t)bytes - ETHERNET_HEADER_BYTES > RK_FRAME_MAX - ETHERNET_HEADER_BYTES ||
		    !plain_find(queue, &near, &view, RK_READ, &plain, &host, reach))
			break;
		segments[i] = (struct iovec){(void *)(uintptr_t)(host + header), bytes};
		set_frame(&frames[i], &segments[i], 1, (uint32_t)bytes);
		last = plain.address;
	}
	if (reach != REACH_NEAR && i)
		queue->last = last;
	return i;
}

/* Functions of their own, so that all they need has a register. */
#define FRAMES_OF(name, reach)                                                                    \
	static __attribute__((noinline)) uint32_t name(                                           \
		struct rk_queue *queue, const struct head *heads, const struct packed_desc *descs, \
		uint32_t count, struct rk_frame *frames, struct iovec *segments)                  \
	{                                                                                         \
		return make_plain(queue, heads, descs, count, frames, segments, reach);           \
	}

FRAMES_OF(near_frames, REACH_NEAR)
FRAMES_OF(slot_frames, REACH_SLOT)
FRAMES_OF(any_frames, REACH_ANY)

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

/* Those anywhere: one that is not within a slot is looked for by itself. */
static inline uint32_t scattered_frames(struct rk_queue *queue, const struct head *heads,
					const struct packed_desc *descs, uint32_t count,
					struct rk_frame *frames, struct iovec *segments)
{
	uint32_t n = 0;

	for (;;) {
		n += slot_frames(queue, heads + n, LAYOUT_PACKED ? descs + n : descs, count - n,
				 frames + n, segments + n);
		if (n == count ||
		    !any_frames(queue, heads + n, LAYOUT_PACKED ? descs + n : descs, 1,
				frames + n, segments + n))
			return n;
		n++;
	}
}

static inline uint32_t plain_frames(struct rk_queue *queue, const struct head *heads,
				    const struct packed_desc *descs, uint32_t count,
				    struct rk_frame *frames, struct iovec *segments)
{
	const bool tries_near = plain_tries_near(queue);
	uint32_t n = 0, more;

	if (tries_near)
		n = near_frames_by_isa(queue, heads, descs, count, frames, segments);
	if (n == count)
		return n;
	more = scattered_frames(queue, heads + n, LAYOUT_PACKED ? descs + n : descs, count - n,
				frames + n, segments + n);
	if (more)
		plain_remember(queue, tries_near);
	return n + more;
}

#endif
