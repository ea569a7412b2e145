/* SPDX-License-Identifier: BSD-3-Clause */
/* Frames of the plain chains that VM1 transmits. */
#ifndef PLAIN_FRAMES_H
#define PLAIN_FRAMES_H

#include "isa.h"
#include "plain_avx2.h"
#include "plain_avx512.h"
#include "plain_frame.h"

/* Where the plain chains end, and the bus address that was looked at last. */
struct made {
	const struct head *end;
	uint64_t last;
};

/*
 * Makes frames as long as the chains are plain, as most are: one readable descriptor with header and frame,
 * all of it in one region. Of another chain nothing is decided here: chain_walk() looks at it anew.
 * Compiled for each reach. flush: lines of a split ring's descriptors that were read to their end (flush.h).
 */
static inline struct made make_plain(const struct rk_queue *queue, const struct head *heads,
				  const struct packed_desc *descs, uint32_t count,
				  struct rk_frame *frames, struct iovec *segments,
				  const enum reach reach, const bool flush)
{
	const struct plain_view view = plain_view(queue, RK_READ, queue->header_bytes);
	const uint64_t origin = plain_origin(&view, reach);
	const struct head *head = heads, *const end = heads + count;
	struct shm *const table = queue->desc;
	uint64_t from = 0;

	for (; head != end; head++, frames++, segments++) {
		const struct packed_desc *desc = LAYOUT_PACKED ? &descs[head - heads] : NULL;
		struct plain plain;
		const bool likely = ring_plain(head->id, desc, 0, &plain, table);
		uint64_t begin, bytes = plain.length - view.skip;

		from = plain.address - origin;
		/* Each in one register, or gcc keeps either also as it was before. */
		__asm__("" : "+r"(from), "+r"(bytes));
		if (!likely || bytes - ETHERNET_HEADER_BYTES > RK_FRAME_MAX - ETHERNET_HEADER_BYTES ||
		    !plain_find(&view, from, (uint32_t)bytes, &begin, reach))
			break;
		/* One by one: all at once they would delay what is stored next. */
		if (flush && ends_line(shm_at(table, sizeof(struct desc) * head->id)))
			shm_flush(shm_at(table, sizeof(struct desc) * head->id));
		*segments = (struct iovec){(void *)(uintptr_t)begin, bytes};
		set_frame(frames, segments, 1, (uint32_t)bytes);
	}
	return (struct made){head, from + origin};
}

/* Functions of their own, so that all they need has a register. */
#define FRAMES_OF(name, reach)                                                                    \
	static __attribute__((noinline)) struct made name(                                        \
		const struct rk_queue *queue, const struct head *heads, const struct packed_desc *descs, \
		uint32_t count, struct rk_frame *frames, struct iovec *segments)                  \
	{                                                                                         \
		if (!LAYOUT_PACKED && queue->flush.level)                                         \
			return make_plain(queue, heads, descs, count, frames, segments, reach,    \
					  true);                                                  \
		return make_plain(queue, heads, descs, count, frames, segments, reach, false);    \
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
	struct made made;

#if defined(__x86_64__) && LAYOUT_PACKED
	if (isa() == ISA_AVX512)
		n = near_frames_avx512(queue, descs, count, frames, segments);
	else if (isa() == ISA_AVX2)
		n = near_frames_avx2(queue, descs, count, frames, segments);
	if (n == count)
		return n;
#endif
	made = near_frames(queue, heads + n, LAYOUT_PACKED ? descs + n : descs, count - n,
			   frames + n, segments + n);
	return (uint32_t)(made.end - heads);
}

/* Those anywhere: one that is not within a slot is looked for by itself. */
static inline uint32_t scattered_frames(struct rk_queue *queue, const struct head *heads,
					const struct packed_desc *descs, uint32_t count,
					struct rk_frame *frames, struct iovec *segments)
{
	uint32_t n = 0;
	struct made made;

	while (n < count) {
		made = slot_frames(queue, heads + n, LAYOUT_PACKED ? descs + n : descs, count - n,
				   frames + n, segments + n);
		n = (uint32_t)(made.end - heads);
		queue->last = made.last;
		if (n == count)
			break;
		made = any_frames(queue, heads + n, LAYOUT_PACKED ? descs + n : descs, 1,
				  frames + n, segments + n);
		if (made.end == heads + n)
			break;
		n++;
	}
	return n;
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
