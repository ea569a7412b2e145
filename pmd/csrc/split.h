/* SPDX-License-Identifier: BSD-3-Clause */
/* The split layout (2.7): where its parts lie, what is available, and how a chain is returned. */
#ifndef SPLIT_H
#define SPLIT_H

#include "queue.h"

/* 2.7.6 and 2.7.8: where the parts of avail and used rings lie. */
#define RING_FLAGS 0u
#define RING_INDEX 2u
#define RING_ENTRIES 4u
#define AVAIL_NO_INTERRUPT 1u
#define USED_NO_NOTIFY 1u

struct used_element {
	uint32_t id;
	uint32_t length;
};

/*
 * The place to look at chains from: of the first not yet taken, with how many are available. None of a ring
 * that now becomes quarantined. avail.idx is read once; the bound on what follows.
 */
static inline struct place split_place(struct rk_queue *queue)
{
	uint16_t index = shm_load16_acquire(shm_at(queue->avail, RING_INDEX),
					    queue->flags & RK_RING_COMBINING);
	struct place place = {.next = queue->next, .left = (uint16_t)(index - queue->next)};

	/* 2.7.6: nothing of it can be trusted. What is in flight is VM1's to reuse only once returned. */
	if (place.left > queue->size - queue->flying) {
		queue->fault = RK_FAULT_INDEX_JUMP;
		place.left = 0;
	}
	return place;
}

static inline struct shm *split_entry(const struct rk_queue *queue, uint16_t index)
{
	return shm_at(queue->avail, RING_ENTRIES + 2u * (index & queue->mask));
}

static inline struct shm *split_desc(const struct rk_queue *queue, uint16_t index)
{
	return shm_at(queue->desc, 16u * (index & queue->mask));
}

/*
 * The next count available entries from place on, read once; what they name is fetched, and the entries after them.
 * How many of them name a descriptor, up to the first that does not.
 */
static inline uint32_t split_heads(const struct rk_queue *queue, const struct place *place,
				   struct head *heads, uint32_t count)
{
	const struct shm *const table = queue->desc;
	const uint32_t slot = place->next & queue->mask;
	const uint32_t first = queue->size - slot < count ? queue->size - slot : count;
	uint16_t ids[RK_BURST_MAX];
	uint32_t all = 0, sound = 0;

	shm_copy_in(ids, split_entry(queue, place->next), 2u * first);
	if (first < count)
		shm_copy_in(ids + first, split_entry(queue, 0), 2u * (count - first));
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t head = ids[i] | 1u << 16; /* both of its fields */

		memcpy(&heads[i], &head, sizeof(head));
		shm_prefetch((const struct shm *)((uintptr_t)table + 16u * ids[i]));
		all |= ids[i];
	}
	if (place->left >= 2 * count)
		shm_prefetch(split_entry(queue, (uint16_t)(place->next + 2 * count - 1)));
	if (__builtin_expect(all < queue->size, true))
		return count;
	while (ids[sound] < queue->size)
		sound++;
	return sound;
}

/* Writes the used element of the oldest chain not yet returned; to be published. */
static inline void split_return(struct rk_queue *queue, uint16_t id, uint32_t length)
{
	struct used_element element = {id, length};
	uint32_t slot = queue->used_next & queue->mask;

	shm_copy_out(shm_at(queue->used, RING_ENTRIES + 8u * slot), &element, sizeof(element));
	queue->used_next++;
}

/* The used elements from a slot on, which do not go round the ring's end. */
static inline void split_return_line(const struct rk_queue *queue, uint32_t slot,
				     const struct head *heads, const uint32_t *lengths,
				     uint32_t count)
{
	struct shm *const elements = shm_at(queue->used, RING_ENTRIES + 8u * slot);

	for (uint32_t i = 0; i < count; i++) {
		const struct used_element element = {heads[i].id, lengths ? lengths[i] : 0};

		shm_copy_out(shm_at(elements, 8u * i), &element, sizeof(element));
	}
}

/* The same of count chains, oldest first, with one length each (NULL: 0 each). */
static inline void split_return_run(struct rk_queue *queue, const struct head *heads,
				    const uint32_t *lengths, uint32_t count)
{
	const uint32_t slot = queue->used_next & queue->mask;
	const uint32_t first = queue->size - slot < count ? queue->size - slot : count;

	split_return_line(queue, slot, heads, lengths, first);
	if (first < count)
		split_return_line(queue, 0, heads + first, lengths ? lengths + first : NULL,
				  count - first);
	queue->used_next += (uint16_t)count;
}

/* The lines that the next count used elements go to: another core has them, and they are wanted soon. */
static inline void split_prefetch_used(const struct rk_queue *queue, uint32_t count)
{
	const uint32_t slot = queue->used_next & queue->mask;

	for (uint32_t i = 0; i < count; i += 8)
		shm_prefetch_write(shm_at(queue->used,
					  RING_ENTRIES + 8u * ((slot + i) & queue->mask)));
}

#endif
