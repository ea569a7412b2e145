/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MAP_H
#define MAP_H

#include "ringk.h"
#include "shm.h"

#include <stdbool.h>

/* For what begins in a slot: where its region is, if that has the slot's first byte. */
struct map_slot {
	uint64_t host; /* what makes a distance from the map's begin an address in this process */
	uint64_t end;  /* of the region, as such a distance; 0: there is none */
};

/* What map_quick() is for: longer buffers are rare. */
#define MAP_QUICK_MAX (1u << 17)
#define MAP_SKIP_MAX (1u << 17)

#define MAP_SLOT_SHIFT 4u
_Static_assert(sizeof(struct map_slot) == 1u << MAP_SLOT_SHIFT, "of a slot's number and its place");

/*
 * Immutable: a new memory table makes a new map, between bursts. The addresses from the first region's begin to
 * the last one's end are cut into slots of 1 << shift bytes, and what a slot holds is looked up by its number.
 */
struct rk_map {
	uint32_t count;
	uint32_t shift;
	uint64_t begin, slots, slot_mask;
	uint64_t slots_made; /* a power of 2; after the others there are some that have no region */
	uint32_t *directory; /* the region that has most of a slot; count: none */
	struct map_slot *readable, *writable; /* of regions with that permission */
	struct rk_region regions[]; /* and one more, which holds nothing */
};

/* The region that holds bus, or NULL: by the directory, or else by halves. */
const struct rk_region *map_search(const struct rk_map *map, uint64_t bus);

/* Where length bytes from bus on are in this process if a region with one permission has them all; 0. */
uint64_t map_whole(const struct rk_map *map, uint64_t bus, uint32_t length, uint32_t permission);

/* What map_quick() takes of a map, for one permission: to be in registers for a whole burst. */
struct map_view {
	uint64_t begin;
	uint64_t mask; /* of a slot's number and its place: makes the latter of what was shifted */
	const uint8_t *slots; /* an array of struct map_slot */
	uint32_t shift;
};

static inline struct map_view map_view(const struct rk_map *map, uint32_t permission)
{
	return (struct map_view){
		.begin = map->begin,
		.mask = (map->slots_made - 1) * sizeof(struct map_slot),
		.slots = (const uint8_t *)(permission == RK_WRITE ? map->writable : map->readable),
		.shift = map->shift - MAP_SLOT_SHIFT,
	};
}

/*
 * Where the last `bytes` of skip + bytes are in this process, if all begin in a slot whose region has them; else
 * map_whole() knows. from: how far from the map's begin they are; skip: MAP_SKIP_MAX at most. No branch depends
 * on which region it is: buffers that lie all over the table cost about what those of one region do.
 *
 * A distance that no slot has is looked up as another one's, but the comparison is of all of it: it is beyond
 * that slot's region, but for one so short of going round that its end does. Its slot is one of the last, which
 * have none (map.c); nor has one the distances of which go round by themselves.
 */
static inline bool map_quick(const struct map_view *view, uint64_t from, uint64_t skip,
			     uint64_t bytes, uint64_t *host)
{
	const uint64_t place = from >> view->shift & view->mask;
	const struct map_slot *slot = (const struct map_slot *)(view->slots + place);

	if (bytes > MAP_QUICK_MAX || from + skip + bytes - 1 >= slot->end)
		return false;
	*host = from + skip + slot->host;
	return true;
}

/* The region that holds bus, or NULL. *hint is the last one found. */
static inline const struct rk_region *map_find(const struct rk_map *map, uint64_t bus,
					       const struct rk_region **hint)
{
	const struct rk_region *region = *hint;

	if (region && bus - region->bus < region->length)
		return region;
	region = map_search(map, bus);
	if (region)
		*hint = region;
	return region;
}

/* Where bus lies in this process, and how much of length is contiguous there; NULL if nowhere. */
static inline struct shm *map_run(const struct rk_map *map, uint64_t bus, uint64_t length,
				  uint32_t permission, uint64_t *run, const struct rk_region **hint)
{
	const struct rk_region *region = map_find(map, bus, hint);
	uint64_t offset, room;

	if (!region || (region->permission & permission) != permission)
		return NULL;
	offset = bus - region->bus;
	room = region->length - offset;
	*run = length < room ? length : room;
	return (struct shm *)(uintptr_t)(region->host + offset);
}

#endif
