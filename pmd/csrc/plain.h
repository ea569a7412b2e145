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
	uint16_t found;

	if (LAYOUT_PACKED) {
		*plain = (struct plain){desc->address, (uint32_t)desc->rest};
		return true;
	}
	found = shm_load16(shm_at(split_at, 12));
	plain->length = shm_load32(shm_at(split_at, 8));
	plain->address = shm_load64(split_at);
	return found == flags;
}

/* Where plain chains are looked for: in the region of the last buffer, within slots of the map, or anywhere in it. */
enum reach {
	REACH_NEAR,
	REACH_SLOT,
	REACH_ANY,
};

/* Where all plain chains of a burst may be: the region of the last one, as far as it has the permission. */
static inline struct rk_region ring_near(const struct rk_queue *queue, uint32_t permission)
{
	if (queue->hint && queue->hint->permission & permission)
		return *queue->hint;
	return (struct rk_region){.length = 0};
}

/* What a burst's plain chains are looked up by. */
struct plain_view {
	const struct rk_map *map;
	struct rk_region near; /* as of ring_near(), without its first skip bytes: where what follows those lies */
	struct map_view slots;
	uint32_t permission;
	uint64_t skip;
};

static inline struct plain_view plain_view(const struct rk_queue *queue, uint32_t permission,
					   uint32_t skip)
{
	struct plain_view view = {
		.map = queue->map,
		.near = ring_near(queue, permission),
		.slots = map_view(queue->map, permission),
		.permission = permission,
		.skip = skip,
	};

	view.near.host += skip;
	view.near.length = view.near.length > skip ? view.near.length - skip : 0;
	return view;
}

/* plain_find() is told addresses as distances from here. */
static inline uint64_t plain_origin(const struct plain_view *view, const enum reach reach)
{
	return reach == REACH_NEAR ? view->near.bus : reach == REACH_SLOT ? view->slots.begin : 0;
}

/*
 * Where a chain of the first skip bytes and so many more, 1 at least, has the latter, if it is all in one region,
 * which is within reach.
 */
static inline bool plain_find(const struct plain_view *view, uint64_t from, uint32_t bytes,
			      uint64_t *host, const enum reach reach)
{
	const struct rk_region *near = &view->near;

	if (reach == REACH_NEAR) {
		*host = near->host + from;
		return from < near->length && from + bytes <= near->length;
	}
	if (reach == REACH_SLOT)
		return map_quick(&view->slots, from, view->skip, bytes, host);
	*host = map_whole(view->map, from, view->skip + bytes, view->permission);
	if (!*host)
		return false;
	*host += view->skip;
	return true;
}

static inline bool plain_anywhere(const struct plain_view *view, const struct plain *plain,
				  uint64_t *host)
{
	return plain_find(view, plain->address - plain_origin(view, REACH_SLOT), plain->length, host,
			  REACH_SLOT) ||
	       plain_find(view, plain->address, plain->length, host, REACH_ANY);
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

	const struct rk_region *last = queue->scattered ? NULL : map_search(queue->map, queue->last);

	if (last)
		queue->hint = last;
	if (tried_near && !first)
		queue->scattered = SCATTERED_BURSTS;
}

#endif
