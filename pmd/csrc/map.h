/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MAP_H
#define MAP_H

#include "ringk.h"
#include "shm.h"

#include <stdbool.h>

/*
 * Immutable: a new memory table makes a new map, between bursts. The addresses from the first region's begin to
 * the last one's end are cut into slots of 1 << shift bytes, and what a slot holds is looked up by its number.
 */
struct rk_map {
	uint32_t count;
	uint32_t shift;
	uint64_t begin, slots, slot_bytes, slot_mask;
	uint32_t *directory; /* the region that has most of a slot; count: none */
	uint64_t *readable;  /* where a slot is in this process, if one region with that permission has it all; 0 */
	uint64_t *writable;
	struct rk_region regions[]; /* and one more, which holds nothing */
};

/* The region that holds bus, or NULL: by the directory, or else by halves. */
const struct rk_region *map_search(const struct rk_map *map, uint64_t bus);

/* Where length bytes from bus on are in this process if a region with one permission has them all; 0. */
uint64_t map_whole(const struct rk_map *map, uint64_t bus, uint32_t length, uint32_t permission);

/*
 * The same, at once for what lies within a slot. No branch depends on which region it is: buffers that lie
 * all over the table cost about what those of one region do.
 */
static inline bool map_quick(const struct rk_map *map, uint64_t bus, uint32_t length,
			     uint32_t permission, uint64_t *host)
{
	const uint64_t *hosts = permission == RK_WRITE ? map->writable : map->readable;
	const uint64_t slot = (bus - map->begin) >> map->shift;
	const uint64_t offset = bus & map->slot_mask; /* slots are aligned */

	if (__builtin_expect(slot < map->slots && offset + length <= map->slot_bytes, true)) {
		*host = hosts[slot] + offset;
		if (__builtin_expect(hosts[slot] != 0, true))
			return true;
	}
	*host = map_whole(map, bus, length, permission);
	return *host != 0;
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
