/* SPDX-License-Identifier: BSD-3-Clause */
/* Marks in the dirty map. It has a byte for each 1 << shift bytes of bus addresses: docs/device.md 5.7. */
#include "dirty.h"
#include "lines.h"

/* The regions by where they are in this process, apart from each other. */
struct dirty {
	uint8_t *marks;
	uint64_t bytes;
	uint32_t shift;
	uint32_t count;
	struct rk_region regions[];
};

static int by_host(const void *left, const void *right)
{
	const struct rk_region *one = left, *other = right;

	return (one->host > other->host) - (one->host < other->host);
}

/* What two regions show, the first of them has: VM1 knows all addresses of its memory. */
static uint32_t part(struct rk_region *regions, uint32_t count)
{
	uint64_t shown = 0;
	uint32_t kept = 0;

	for (uint32_t i = 0; i < count; i++) {
		struct rk_region region = regions[i];
		const uint64_t again = region.host < shown ? shown - region.host : 0;

		if (again >= region.length)
			continue;
		region.bus += again;
		region.host += again;
		region.length -= again;
		shown = region.host + region.length;
		regions[kept++] = region;
	}
	return kept;
}

struct dirty *dirty_new(const struct rk_ring_config *config, const struct rk_map *map)
{
	const size_t size = map->count * sizeof(map->regions[0]);
	struct dirty *dirty = lines_new(sizeof(*dirty) + size);

	if (!dirty)
		return NULL;
	dirty->marks = (uint8_t *)(uintptr_t)config->dirty;
	dirty->bytes = config->dirty_bytes;
	dirty->shift = config->dirty_shift;
	memcpy(dirty->regions, map->regions, size);
	qsort(dirty->regions, map->count, sizeof(map->regions[0]), by_host);
	dirty->count = part(dirty->regions, map->count);
	return dirty;
}

static const struct rk_region *find(const struct dirty *dirty, uint64_t host)
{
	uint32_t low = 0, high = dirty->count;

	while (low < high) {
		const uint32_t middle = low + (high - low) / 2;
		const struct rk_region *region = &dirty->regions[middle];

		if (host < region->host)
			high = middle;
		else if (host - region->host < region->length)
			return region;
		else
			low = middle + 1;
	}
	return NULL;
}

/*
 * Each mark is stored, after what it is of, even where there is one: that may just be being taken, and a load
 * of it could pass our own stores.
 */
static void mark(const struct dirty *dirty, uint64_t host, uint64_t bytes)
{
	while (bytes) {
		const struct rk_region *region = find(dirty, host);
		uint64_t offset, run, first, last;

		if (!region)
			return;
		offset = host - region->host;
		run = region->length - offset < bytes ? region->length - offset : bytes;
		first = (region->bus + offset) >> dirty->shift;
		last = (region->bus + offset + (run - 1)) >> dirty->shift;
		for (uint64_t i = first; i <= last && i < dirty->bytes; i++)
			__atomic_store_n(&dirty->marks[i], 1, __ATOMIC_RELEASE);
		host += run;
		bytes -= run;
	}
}

void dirty_mark(const struct rk_queue *queue, const struct shm *written, uint64_t bytes)
{
	shm_order_stores(queue->flags & RK_RING_COMBINING);
	mark(queue->dirty, (uintptr_t)written, bytes);
}

void dirty_mark_all(const struct rk_queue *queue, struct shm *const *places,
		    const uint32_t *lengths, uint32_t n)
{
	shm_order_stores(queue->flags & RK_RING_COMBINING);
	for (uint32_t i = 0; i < n; i++)
		mark(queue->dirty, (uintptr_t)places[i], lengths[i]);
}

void dirty_mark_segments(const struct rk_queue *queue, const struct iovec *segments, uint64_t bytes)
{
	shm_order_stores(queue->flags & RK_RING_COMBINING);
	for (; bytes; segments++) {
		const uint64_t part = segments->iov_len < bytes ? segments->iov_len : bytes;

		mark(queue->dirty, (uintptr_t)segments->iov_base, part);
		bytes -= part;
	}
}
