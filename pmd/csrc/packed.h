/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The packed layout (2.8): where its parts lie, what is available, and how a chain is returned.
 *
 * A place in a packed ring is the index of a descriptor, plus the ring's size in the laps whose wrap counter is
 * 0 (2.8.1): 0 .. 2 * size - 1. desc is the descriptor ring, avail the driver's event structure, used
 * the device's.
 */
#ifndef PACKED_H
#define PACKED_H

#include "queue.h"

/* 2.8.1, 2.8.13 */
#define PACKED_AVAIL (1u << 7)
#define PACKED_USED (1u << 15)
#define PACKED_MARKS (PACKED_AVAIL | PACKED_USED)

/* 2.8.10 */
#define EVENT_FLAGS 2u /* where they lie in an event structure */
#define EVENT_ENABLE 0u
#define EVENT_DISABLE 1u
#define EVENT_DESC 2u
/* 2.8.14, and of the commit words: the wrap counter beside an index. */
#define POSITION_WRAP (1u << 15)

/* 2.8.13. What follows the address, length, id and flags, is read and written at once. */
struct packed_desc {
	uint64_t address;
	uint64_t rest;
};

#define PACKED_REST offsetof(struct packed_desc, rest)

static inline uint32_t rest_length(uint64_t rest)
{
	return (uint32_t)rest;
}

static inline uint16_t rest_id(uint64_t rest)
{
	return (uint16_t)(rest >> 32);
}

static inline uint32_t rest_flags(uint64_t rest)
{
	return (uint32_t)(rest >> 48);
}

static inline uint64_t make_rest(uint32_t length, uint16_t id, uint32_t flags)
{
	return length | (uint64_t)id << 32 | (uint64_t)flags << 48;
}

static inline uint16_t packed_after(const struct rk_queue *queue, uint32_t place, uint32_t span)
{
	place += span;
	return (uint16_t)(place < 2 * queue->size ? place : place - 2 * queue->size);
}

static inline uint32_t packed_distance(const struct rk_queue *queue, uint32_t from, uint32_t to)
{
	return to >= from ? to - from : to + 2 * queue->size - from;
}

static inline struct shm *packed_desc(const struct rk_queue *queue, uint32_t place)
{
	return shm_at(queue->desc, 16ull * (place < queue->size ? place : place - queue->size));
}

/* PACKED_MARKS of a descriptor that is available at a place; of one that is used. */
static inline uint32_t packed_available(const struct rk_queue *queue, uint32_t place)
{
	return place < queue->size ? PACKED_AVAIL : PACKED_USED;
}

static inline uint32_t packed_used(const struct rk_queue *queue, uint32_t place)
{
	return place < queue->size ? PACKED_MARKS : 0;
}

/* Everything but the address. VM1 writes flags last (2.8.21.1.1), so what it says of them holds for all. */
static inline uint64_t packed_rest(const struct rk_queue *queue, uint32_t place)
{
	return shm_load64_acquire(shm_at(packed_desc(queue, place), PACKED_REST),
				  queue->flags & RK_RING_COMBINING);
}

/*
 * The place to look at chains from, with how many descriptors can be VM1's from there: all but those not
 * yet returned. None if the first is not available.
 */
static inline struct place packed_place(const struct rk_queue *queue)
{
	const uint32_t taken = packed_distance(queue, queue->used_shown, queue->next);
	struct place place = {.next = queue->next, .left = queue->size - taken};

	if (place.left && (rest_flags(packed_rest(queue, place.next)) & PACKED_MARKS) !=
				  packed_available(queue, place.next))
		place.left = 0;
	return place;
}

/*
 * The chain at a place, judged as chain_walk() does; permission 0: not judged, chain->verdict stays.
 * A chain of which a descriptor is not available is none (2.8.17). LOOK_FAULT: it is longer than what
 * VM1 has, and nobody can tell where it ends.
 */
enum look packed_look(struct rk_queue *queue, const struct place *place, uint32_t permission,
		      struct chain *chain, struct head *head);

/* What a used descriptor says at a place (2.8.1, 2.8.3). */
static inline uint64_t packed_used_rest(const struct rk_queue *queue, uint32_t place, uint16_t id,
					uint32_t length)
{
	return make_rest(length, id, packed_used(queue, place) | (length ? DESC_WRITE : 0));
}

/* Adds the used descriptor of the oldest chain not yet returned to those to be published. */
static inline void packed_return(struct rk_queue *queue, struct head head, uint32_t length, bool more)
{
	const uint16_t place = queue->used_next;

	queue->pending[queue->pending_count++] = (struct pending){
		packed_used_rest(queue, place, head.id, length), place, more};
	queue->pending_more |= more;
	queue->used_next = packed_after(queue, place, head.span);
}

/* The same of count chains that hold a frame each. */
void packed_return_run(struct rk_queue *queue, const struct head *heads, const uint32_t *lengths,
		       uint32_t count);

/* The same of count chains that were for reading: one used descriptor may stand for all (2.8.8). */
void packed_return_read(struct rk_queue *queue, const struct head *heads, uint32_t count);

/*
 * Reads, from a place on, the descriptors that are available and have exactly these flags: chains by themselves;
 * at most count of them, and place->left. First what follows their addresses, which vouches for those:
 * the order in between then costs once, where it costs.
 */
uint32_t packed_plain(const struct rk_queue *queue, const struct place *place, uint32_t flags,
		      uint32_t count, struct packed_desc *descs, struct head *heads);

/* Begins where the commit words say: docs/device.md 5.6. False with errno ERANGE if they say nonsense. */
bool packed_begin(struct rk_queue *queue);
/* Marks what is pending used. */
void packed_mark(struct rk_queue *queue);
/* Whether VM1 asks to be called for what was marked from the place `from` on (2.8.10). */
bool packed_wants_call(const struct rk_queue *queue, uint16_t from);

#endif
