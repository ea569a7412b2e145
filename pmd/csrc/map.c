/* SPDX-License-Identifier: BSD-3-Clause */
/* Translation of VM1's bus addresses: a sorted table, and by slots what is where in it. */
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

/* A slot is a page at least; there are a few for each region: the ones in use are to stay in the cache. */
#define SLOT_SHIFT_MIN 12u
#define SLOTS_LEAST 1024u
#define SLOTS_PER_REGION 4u
#define SLOTS_MOST 65536u

/* What map_quick() looks up at a time; the last slots, which have as many bytes and one more slot's, are empty. */
#define QUICK_BYTES (MAP_QUICK_MAX + MAP_SKIP_MAX)
#define SLOTS_EMPTY ((QUICK_BYTES >> SLOT_SHIFT_MIN) + 1)

/* The bytes that a region has of a slot. */
static uint64_t share(const struct rk_map *map, uint64_t slot, const struct rk_region *region)
{
	const uint64_t from = map->begin + (slot << map->shift);
	const uint64_t to = from + map->slot_mask;
	const uint64_t first = region->bus, last = region->bus + (region->length - 1);

	return (last < to ? last : to) - (first > from ? first : from) + 1;
}

static void enter_slot(struct rk_map *map, uint64_t slot, uint32_t i)
{
	const struct rk_region *region = &map->regions[i];
	const uint64_t begin = slot << map->shift, first = region->bus - map->begin;
	const struct map_slot found = {region->host - first, first + region->length};
	const uint32_t rival = map->directory[slot];

	if (rival == map->count ||
	    share(map, slot, region) > share(map, slot, &map->regions[rival]))
		map->directory[slot] = i;
	/* map_quick() adds a buffer's length to a distance within the slot: 64 bits are to hold that. */
	if (first > begin || begin > UINT64_MAX - map->slot_mask - QUICK_BYTES)
		return;
	if (region->permission & RK_READ)
		map->readable[slot] = found;
	if (region->permission & RK_WRITE)
		map->writable[slot] = found;
}

/* Chooses slots; false if there is no memory for them. */
static bool cut(struct rk_map *map)
{
	const uint64_t first = map->count ? map->regions[0].bus : 0;
	uint64_t made = SLOTS_LEAST;

	while (made < (uint64_t)map->count * SLOTS_PER_REGION && made < SLOTS_MOST)
		made *= 2;
	map->slots_made = made;
	map->shift = SLOT_SHIFT_MIN;
	if (map->count) {
		const struct rk_region *region = &map->regions[map->count - 1];
		const uint64_t last = region->bus + (region->length - 1);

		while ((last >> map->shift) - (first >> map->shift) >= made - SLOTS_EMPTY)
			map->shift++;
		map->slots = (last >> map->shift) - (first >> map->shift) + 1;
	}
	map->slot_mask = (1ull << map->shift) - 1;
	map->begin = first & ~map->slot_mask;
	map->directory = malloc(made * sizeof(*map->directory));
	map->readable = calloc(made, sizeof(*map->readable));
	map->writable = calloc(made, sizeof(*map->writable));
	return map->directory && map->readable && map->writable;
}

static void enter(struct rk_map *map)
{
	for (uint64_t slot = 0; slot < map->slots; slot++)
		map->directory[slot] = map->count;
	for (uint32_t i = 0; i < map->count; i++) {
		const uint64_t first = map->regions[i].bus - map->begin;
		const uint64_t last = first + (map->regions[i].length - 1);

		for (uint64_t slot = first >> map->shift; slot <= last >> map->shift; slot++)
			enter_slot(map, slot, i);
	}
}

struct rk_map *rk_map_new(const struct rk_region *regions, uint32_t count)
{
	struct rk_map *map;

	if (!regions_valid(regions, count)) {
		errno = EINVAL;
		return NULL;
	}
	map = calloc(1, sizeof(*map) + ((size_t)count + 1) * sizeof(map->regions[0]));
	if (!map)
		return NULL;
	map->count = count;
	if (count)
		memcpy(map->regions, regions, (size_t)count * sizeof(map->regions[0]));
	if (!cut(map)) {
		rk_map_free(map);
		return NULL;
	}
	enter(map);
	return map;
}

void rk_map_free(struct rk_map *map)
{
	if (!map)
		return;
	free(map->directory);
	free(map->readable);
	free(map->writable);
	free(map);
}

const struct rk_region *map_search(const struct rk_map *map, uint64_t bus)
{
	const uint64_t slot = (bus - map->begin) >> map->shift;
	const struct rk_region *likely;
	uint32_t low = 0, high = map->count;

	if (slot >= map->slots)
		return NULL;
	likely = &map->regions[map->directory[slot]];
	if (bus - likely->bus < likely->length)
		return likely;
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

uint64_t map_whole(const struct rk_map *map, uint64_t bus, uint32_t length, uint32_t permission)
{
	const struct rk_region *hint = NULL;
	uint64_t run = 0;
	struct shm *host = map_run(map, bus, length, permission, &run, &hint);

	return run == length ? (uint64_t)(uintptr_t)host : 0;
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
