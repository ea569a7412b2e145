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
 * is what was read, and has the flags it must (packed_plain()).
 */
static inline bool ring_plain(uint32_t id, uint32_t size, const struct packed_desc *desc,
			      uint16_t flags, struct plain *plain, struct shm *desc_table)
{
	struct shm *split_at = shm_at(desc_table, 16u * (id & (size - 1)));
	const uint64_t address = LAYOUT_PACKED ? desc->address : shm_load64(split_at);
	const uint64_t rest = LAYOUT_PACKED ? desc->rest : shm_load64(shm_at(split_at, 8));

	*plain = (struct plain){address, (uint32_t)rest};
	return LAYOUT_PACKED || (id < size && (uint16_t)(rest >> 32) == flags);
}

/* Whether all of that is in the region near; then where it begins. */
static inline bool plain_near(const struct rk_region *near, const struct plain *plain, uint64_t *host)
{
	const uint64_t offset = plain->address - near->bus;

	*host = near->host + offset;
	return offset < near->length && offset + plain->length <= near->length;
}

/* Whether it is all in one region; then where it begins. */
static inline bool plain_anywhere(const struct rk_queue *queue, uint32_t permission,
				  const struct plain *plain, uint64_t *host)
{
	return map_quick(queue->map, plain->address, plain->length, permission, host);
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

#endif
