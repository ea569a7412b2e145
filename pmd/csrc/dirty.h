/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * While VM1 migrates: what is written to its memory is marked in the device's map, docs/device.md 5.7.
 *
 * Only buffers are marked here. What else a driver writes are ring parts, and those the device knows.
 */
#ifndef DIRTY_H
#define DIRTY_H

#include "queue.h"

struct dirty;

/* For a ring whose config says that there is a map; NULL if there is no memory. */
struct dirty *dirty_new(const struct rk_ring_config *config, const struct rk_map *map);

/* Marks bytes at a place of this process, once they are written. */
void dirty_mark(const struct rk_queue *queue, const struct shm *written, uint64_t bytes);

/* The same of n places, and of the first bytes of segments. */
void dirty_mark_all(const struct rk_queue *queue, struct shm *const *places,
		    const uint32_t *lengths, uint32_t n);
void dirty_mark_segments(const struct rk_queue *queue, const struct iovec *segments, uint64_t bytes);

#endif
