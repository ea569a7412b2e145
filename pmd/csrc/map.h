/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MAP_H
#define MAP_H

#include "ringk.h"
#include "shm.h"

/* Immutable: a new memory table makes a new map, between bursts. */
struct rk_map {
	uint32_t count;
	struct rk_region regions[];
};

const struct rk_region *map_search(const struct rk_map *map, uint64_t bus);

/*
 * The region that holds bus, or NULL. *hint is the last one found: traffic stays in one region for
 * long, and then this is one subtraction and one comparison.
 */
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
