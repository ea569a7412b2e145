/* SPDX-License-Identifier: BSD-3-Clause */
/* Translation of VM1's bus addresses: a sorted table, searched by halves. */
#include "map.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

static bool regions_valid(const struct rk_region *regions, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		const struct rk_region *region = &regions[i];
		uint64_t last = region->length - 1;

		if (region->length == 0 || region->bus + last < region->bus ||
		    region->host + last < region->host || region->host == 0)
			return false;
		if (i && region->bus - regions[i - 1].bus < regions[i - 1].length)
			return false;
		if (i && region->bus < regions[i - 1].bus)
			return false;
	}
	return true;
}

struct rk_map *rk_map_new(const struct rk_region *regions, uint32_t count)
{
	struct rk_map *map;

	if (!regions_valid(regions, count)) {
		errno = EINVAL;
		return NULL;
	}
	map = malloc(sizeof(*map) + (size_t)count * sizeof(map->regions[0]));
	if (!map)
		return NULL;
	map->count = count;
	if (count)
		memcpy(map->regions, regions, (size_t)count * sizeof(map->regions[0]));
	return map;
}

void rk_map_free(struct rk_map *map)
{
	free(map);
}

const struct rk_region *map_search(const struct rk_map *map, uint64_t bus)
{
	uint32_t low = 0, high = map->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		const struct rk_region *region = &map->regions[middle];

		if (bus < region->bus)
			high = middle;
		else if (bus - region->bus < region->length)
			return region;
		else
			low = middle + 1;
	}
	return NULL;
}

uint64_t rk_map_translate(const struct rk_map *map, uint64_t bus, uint64_t length,
			  uint32_t permission, uint64_t *run)
{
	const struct rk_region *hint = NULL;
	uint64_t found = 0;
	struct shm *host = length ? map_run(map, bus, length, permission, &found, &hint) : NULL;

	*run = found;
	return (uint64_t)(uintptr_t)host;
}
