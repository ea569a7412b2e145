/* SPDX-License-Identifier: BSD-3-Clause */
/* Plain chains that VM1 receives into: one writable descriptor that holds the whole frame, in one region. */
#ifndef PLAIN_TARGETS_H
#define PLAIN_TARGETS_H

#include "isa.h"
#include "plain_avx512.h"

/*
 * Where plain chains want the frames; stops at the first that is not plain, of which nothing is decided then.
 * Compiled for each reach. flush: enum flush_level; what is written lies in VM1's cache, or in ours.
 */
static inline uint32_t find_targets(struct rk_queue *queue, const struct rk_frame *frames,
				    const struct head *heads, const struct packed_desc *descs,
				    uint32_t count, struct shm **targets, const enum reach reach,
				    const uint32_t flush)
{
	const struct plain_view view = plain_view(queue, RK_WRITE, 0);
	const uint64_t origin = plain_origin(&view, reach);
	const uint32_t header = queue->header_bytes;
	struct shm *const table = queue->desc;
	uint64_t last = 0;
	uint32_t i;

	for (i = 0; i < count; i++) {
		const struct packed_desc *desc = LAYOUT_PACKED ? &descs[i] : NULL;
		struct plain plain;
		uint64_t host;

		if (!ring_plain(heads[i].id, desc, DESC_WRITE, &plain, table) ||
		    plain.length < (uint64_t)header + frames[i].bytes ||
		    !plain_find(&view, plain.address - origin, plain.length, &host, reach))
			break;
		targets[i] = (struct shm *)(uintptr_t)host;
		if (flush)
			flush_frame(targets[i], header + frames[i].bytes, flush);
		else
			shm_prefetch_frame_write(targets[i], header + frames[i].bytes);
		last = plain.address;
	}
	if (reach != REACH_NEAR && i)
		queue->last = last;
	return i;
}

/* Functions of their own, so that all they need has a register. */
#define TARGETS_OF(name, reach)                                                                    \
	static __attribute__((noinline)) uint32_t name(                                            \
		struct rk_queue *queue, const struct rk_frame *frames, const struct head *heads,   \
		const struct packed_desc *descs, uint32_t count, struct shm **targets)             \
	{                                                                                          \
		const uint32_t flush = queue->flush.level;                                         \
                                                                                                   \
		if (flush)                                                                         \
			return find_targets(queue, frames, heads, descs, count, targets, reach,    \
					    flush);                                                \
		return find_targets(queue, frames, heads, descs, count, targets, reach,            \
				    FLUSH_NOTHING);                                                \
	}

TARGETS_OF(near_targets, REACH_NEAR)
TARGETS_OF(slot_targets, REACH_SLOT)
TARGETS_OF(any_targets, REACH_ANY)

/* Those anywhere: one that is not within a slot is looked for by itself. */
static inline uint32_t scattered_targets(struct rk_queue *queue, const struct rk_frame *frames,
					 const struct head *heads, const struct packed_desc *descs,
					 uint32_t count, struct shm **targets)
{
	uint32_t n = 0;

	for (;;) {
		n += slot_targets(queue, frames + n, heads + n, LAYOUT_PACKED ? descs + n : descs,
				  count - n, targets + n);
		if (n == count ||
		    !any_targets(queue, frames + n, heads + n, LAYOUT_PACKED ? descs + n : descs,
				 1, targets + n))
			return n;
		n++;
	}
}

/* Those in the region of the last buffer, by the instructions chosen. */
static inline uint32_t near_targets_by_isa(struct rk_queue *queue, const struct rk_frame *frames,
					   const struct head *heads,
					   const struct packed_desc *descs, uint32_t count,
					   struct shm **targets)
{
	uint32_t n = 0;

#if defined(__x86_64__) && LAYOUT_PACKED
	if (isa() == ISA_AVX512 && !queue->flush.level)
		n = near_targets_avx512(queue, frames, descs, count, targets);
	if (n == count)
		return n;
#endif
	return n + near_targets(queue, frames + n, heads + n, LAYOUT_PACKED ? descs + n : descs,
				count - n, targets + n);
}

static inline uint32_t plain_targets(struct rk_queue *queue, const struct rk_frame *frames,
				     const struct head *heads, const struct packed_desc *descs,
				     uint32_t count, struct shm **targets)
{
	const bool tries_near = plain_tries_near(queue);
	uint32_t n = 0, more;

	if (tries_near)
		n = near_targets_by_isa(queue, frames, heads, descs, count, targets);
	if (n == count)
		return n;
	more = scattered_targets(queue, frames + n, heads + n, LAYOUT_PACKED ? descs + n : descs,
				 count - n, targets + n);
	if (more)
		plain_remember(queue, tries_near);
	return n + more;
}

#endif
