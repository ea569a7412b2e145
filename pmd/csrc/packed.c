/* SPDX-License-Identifier: BSD-3-Clause */
/* A packed ring: where it begins, and how used descriptors are written so that no death of ours breaks it. */
#include "packed_avx512.h"

#include <errno.h>

/* Of the word "intended": the batch is one frame in several buffers, each but the last full. */
#define COMMIT_ONE_FRAME (1u << 16)

static uint32_t position(const struct rk_queue *queue, uint32_t place)
{
	return place < queue->size ? place | POSITION_WRAP : place - queue->size;
}

/* The place of a position; false if it is none of this ring. */
static bool find_place(const struct rk_queue *queue, uint32_t position, uint16_t *place)
{
	const uint32_t index = position & (POSITION_WRAP - 1);

	if (index >= queue->size)
		return false;
	*place = (uint16_t)(position & POSITION_WRAP ? index : index + queue->size);
	return true;
}

static void set_commit(struct rk_queue *queue, uint32_t which, uint32_t value)
{
	__atomic_store_n(&queue->commit[which], value, __ATOMIC_RELEASE);
}

#define COMMITTED 0u
#define INTENDED 1u

/* ---- publishing ------------------------------------------------------------------------------- */

/*
 * Marks pending[from..to) used, the first one last: VM1 looks for that one, so it sees all or none (2.8.9). The
 * others backwards too: what a predecessor marked begins somewhere and reaches to the end. One
 * store each: id and length cannot be seen apart from the flags that make them valid.
 */
static void mark_used(struct rk_queue *queue, uint32_t from, uint32_t to)
{
	const struct pending *const pending = queue->pending;
	const bool combining = queue->flags & RK_RING_COMBINING;
	struct shm *const rests = shm_at(queue->desc, PACKED_REST);
	const uint32_t size = queue->size;

	shm_order_stores(combining);
	for (uint32_t i = to; i-- > from;) {
		const uint32_t place = pending[i].place;
		const uint32_t index = place < size ? place : place - size;

		if (i == from)
			shm_order_stores(combining);
		shm_store64_release(shm_at(rests, 16u * index), pending[i].rest);
	}
}

/* The end of the batch from `from` on: buffers that are a frame each, or one frame in several. */
static uint32_t batch_end(const struct rk_queue *queue, uint32_t from)
{
	const struct pending *pending = queue->pending;
	uint32_t to = from;

	if (pending[from].more) {
		while (pending[to].more)
			to++;
		return to + 1;
	}
	if (!queue->pending_more)
		return queue->pending_count;
	while (to < queue->pending_count && !pending[to].more)
		to++;
	return to;
}

/* lengths NULL: nothing was written. */
static inline void return_run(struct rk_queue *queue, const struct head *heads,
			      const uint32_t *lengths, uint32_t count)
{
	struct pending *pending = &queue->pending[queue->pending_count];
	/* All in registers: the stores below could be to *queue, for all the compiler knows. */
	const struct rk_queue ring = {.size = queue->size};
	uint32_t place = queue->used_next, i = 0;

#if defined(__x86_64__)
	if (isa() == ISA_AVX512)
		i = return_fours(queue, heads, lengths, count, pending);
	place = packed_after(&ring, place, i);
#endif
	for (; i < count; i++) {
		const struct head head = heads[i];
		const uint32_t length = lengths ? lengths[i] : 0;

		pending[i] = (struct pending){packed_used_rest(&ring, place, head.id, length),
					      (uint16_t)place, false};
		place = packed_after(&ring, place, head.span);
	}
	queue->used_next = (uint16_t)place;
	queue->pending_count += count;
}

void packed_return_run(struct rk_queue *queue, const struct head *heads, const uint32_t *lengths,
		       uint32_t count)
{
	return_run(queue, heads, lengths, count);
}

void packed_return_read(struct rk_queue *queue, const struct head *heads, uint32_t count)
{
	const uint16_t place = queue->pending_count ? queue->pending[0].place : queue->used_next;
	uint32_t span = 0;

	if (!(queue->flags & RK_RING_IN_ORDER)) {
		return_run(queue, heads, NULL, count);
		return;
	}
	if (count == 0)
		return;
	for (uint32_t i = 0; i < count; i++)
		span += heads[i].span;
	queue->pending[0] = (struct pending){
		packed_used_rest(queue, place, heads[count - 1].id, 0), place, false};
	queue->pending_count = 1;
	queue->used_next = packed_after(queue, queue->used_next, span);
}

void packed_mark(struct rk_queue *queue)
{
	const uint32_t count = queue->pending_count;

	for (uint32_t from = 0, to; from < count; from = to) {
		uint32_t end, one_frame = queue->pending[from].more ? COMMIT_ONE_FRAME : 0;

		to = batch_end(queue, from);
		end = position(queue, to < count ? queue->pending[to].place : queue->used_next);
		set_commit(queue, INTENDED, end | one_frame);
		mark_used(queue, from, to);
		set_commit(queue, COMMITTED, end);
	}
	queue->pending_count = 0;
	queue->pending_more = false;
}

bool packed_wants_call(const struct rk_queue *queue, uint16_t from)
{
	const uint32_t event = shm_load32(queue->avail);
	const uint32_t flags = event >> 16 & 3;
	uint16_t place;

	if (flags == EVENT_DISABLE)
		return false;
	/* What says nothing (2.8.14) suppresses nothing. */
	if (flags != EVENT_DESC || !(queue->flags & RK_RING_EVENT_IDX) ||
	    !find_place(queue, event & 0xffff, &place))
		return true;
	return packed_distance(queue, from, place) <
	       packed_distance(queue, from, queue->used_shown);
}

/* ---- beginning: docs/device.md 5.6 ------------------------------------------------------------- */

static uint32_t marks_at(const struct rk_queue *queue, uint32_t place)
{
	return rest_flags(packed_rest(queue, place)) & PACKED_MARKS;
}

/*
 * The batch [next, end) was begun by a predecessor that died. Finishes it if a part of it is marked: true. False:
 * nothing is, so that its chains are as good as new.
 */
static bool finish_batch(struct rk_queue *queue, uint16_t end, bool one_frame)
{
	struct place at = {queue->next, packed_distance(queue, queue->next, end)};

	while (at.left) {
		struct chain chain = {.segments = queue->segments};
		enum look look;
		struct head head;

		look = packed_look(queue, &at, one_frame ? RK_WRITE : 0, &chain, &head);
		if (look == LOOK_FAULT)
			break;
		if (look == LOOK_NONE && marks_at(queue, at.next) == packed_used(queue, at.next)) {
			mark_used(queue, 0, queue->pending_count);
			set_commit(queue, COMMITTED, position(queue, end));
			queue->next = end;
			break;
		}
		if (look == LOOK_NONE)
			break;
		packed_return(queue, head,
			      one_frame && chain.verdict == RK_SENT ? (uint32_t)chain.bytes : 0, false);
		at.next = packed_after(queue, at.next, head.span);
		at.left -= head.span;
	}
	queue->pending_count = 0;
	return queue->next == end;
}

bool packed_begin(struct rk_queue *queue)
{
	const uint32_t committed = __atomic_load_n(&queue->commit[COMMITTED], __ATOMIC_ACQUIRE);
	const uint32_t intended = __atomic_load_n(&queue->commit[INTENDED], __ATOMIC_ACQUIRE);
	uint16_t begin, end;

	if (!find_place(queue, committed & 0xffff, &begin) ||
	    !find_place(queue, intended & 0xffff, &end) ||
	    packed_distance(queue, begin, end) > queue->size) {
		errno = ERANGE;
		return false;
	}
	queue->next = begin;
	queue->used_next = begin;
	if (begin != end && (marks_at(queue, begin) != packed_available(queue, begin) ||
			     finish_batch(queue, end, intended & COMMIT_ONE_FRAME)))
		queue->next = end;
	queue->used_next = queue->next;
	queue->used_shown = queue->next;
	return true;
}
