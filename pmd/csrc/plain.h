/* SPDX-License-Identifier: BSD-3-Clause */
/* A plain chain, as most are: one descriptor, and all of its memory in one region. */
#ifndef PLAIN_H
#define PLAIN_H

#include "layout.h"

/* The memory of a plain chain. */
struct plain {
	uint64_t address;
	uint32_t length;
};

/*
 * Whether a chain is one descriptor with exactly these flags. Each word is read once. Of a packed ring desc
 * is what was read, and has the flags it must (packed_plain()); of a split one the id names a descriptor.
 */
static inline bool ring_plain(uint32_t id, const struct packed_desc *desc, uint16_t flags,
			      struct plain *plain, struct shm *desc_table)
{
	struct shm *split_at = shm_at(desc_table, 16u * id);
	const uint64_t address = LAYOUT_PACKED ? desc->address : shm_load64(split_at);
	const uint64_t rest = LAYOUT_PACKED ? desc->rest : shm_load64(shm_at(split_at, 8));

	*plain = (struct plain){address, (uint32_t)rest};
	return LAYOUT_PACKED || (uint16_t)(rest >> 32) == flags;
}

/* Whether all of that is in the region near; then where it begins. */
static inline bool plain_near(const struct rk_region *near, const struct plain *plain, uint64_t *host)
{
	const uint64_t offset = plain->address - near->bus;

	*host = near->host + offset;
	return offset < near->length && offset + plain->length <= near->length;
}

/* Where plain chains are looked for: in the region of the last buffer, within slots of the map, or anywhere in it. */
enum reach {
	REACH_NEAR,
	REACH_SLOT,
	REACH_ANY,
};

/* Where a plain chain begins, if it is all in one region, which is within reach. */
static inline bool plain_find(const struct rk_queue *queue, const struct rk_region *near,
			      const struct map_view *view, uint32_t permission,
			      const struct plain *plain, uint64_t *host, const enum reach reach)
{
	if (reach == REACH_NEAR)
		return plain_near(near, plain, host);
	if (reach == REACH_SLOT)
		return map_quick(view, plain->address, plain->length, host);
	*host = map_whole(queue->map, plain->address, plain->length, permission);
	return *host != 0;
}

static inline bool plain_anywhere(const struct rk_queue *queue, const struct map_view *view,
				  uint32_t permission, const struct plain *plain, uint64_t *host)
{
	return plain_find(queue, NULL, view, permission, plain, host, REACH_SLOT) ||
	       plain_find(queue, NULL, view, permission, plain, host, REACH_ANY);
}

/* Where all plain chains of a burst may be: the region of the last one, as far as it has the permission. */
static inline struct rk_region ring_near(const struct rk_queue *queue, uint32_t permission)
{
	if (queue->hint && queue->hint->permission & permission)
		return *queue->hint;
	return (struct rk_region){.length = 0};
}

/* After a burst whose buffers lay in several regions so many more are not tried as one that lies in one. */
#define SCATTERED_BURSTS 16u

static inline bool plain_tries_near(struct rk_queue *queue)
{
	if (!queue->scattered)
		return true;
	queue->scattered--;
	return false;
}

/* There were chains that were not near: where the last of them is. */
static inline void plain_remember(struct rk_queue *queue, bool tried_near)
{
	const bool first = !queue->hint;

	if (!queue->scattered)
		queue->hint = map_search(queue->map, queue->last);
	if (tried_near && !first)
		queue->scattered = SCATTERED_BURSTS;
}

#endif
