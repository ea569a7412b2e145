/* SPDX-License-Identifier: BSD-3-Clause */
/* What walking a chain is made of, in either layout. */
#ifndef CHAIN_H
#define CHAIN_H

#include "missing.h"
#include "queue.h"

/* Copies an indirect table of length bytes to queue->table, where its form is legal. */
enum rk_drop chain_copy_table(struct rk_queue *queue, uint64_t address, uint32_t length);

/* Copies the next of the bytes that are left out to queue->header. */
void chain_keep_header(struct rk_queue *queue, const struct chain *chain, const struct shm *window,
		       uint32_t bytes);

/* Adds bus..bus+length to the chain's segments, cut where it crosses a border of the map. */
static inline enum rk_drop chain_add(struct rk_queue *queue, struct chain *chain, uint64_t bus,
					uint64_t length, uint32_t permission)
{
	while (length) {
		uint64_t run, skip;
		struct shm *host = map_run(queue->map, bus, length, permission, &run, &queue->hint);

		if (__builtin_expect(!host, false))
			return missing_buffer(queue, chain, bus, length, permission);
		if (chain->count == queue->chain_segments)
			return RK_DROP_OVERSIZE;
		skip = chain->skip < run ? chain->skip : run;
		if (__builtin_expect(skip && queue->flags & RK_RING_OFFLOADS, false))
			chain_keep_header(queue, chain, host, (uint32_t)skip);
		chain->skip -= (uint32_t)skip;
		if (run > skip) {
			struct iovec *segment = &chain->segments[chain->count++];

			segment->iov_base = shm_at(host, skip);
			segment->iov_len = run - skip;
		}
		bus += run;
		length -= run;
	}
	return RK_SENT;
}

/* Judges one buffer and takes it into the chain. */
static inline enum rk_drop chain_take(struct rk_queue *queue, uint64_t address,
				      uint32_t length, bool writable, uint32_t permission,
				      struct chain *chain)
{
	const uint64_t limit = queue->header_bytes + (uint64_t)RK_FRAME_MAX;
	enum rk_drop verdict = RK_SENT;

	/* 2.7.5.1, 2.8.15: what the driver says is for reading is never written, and the reverse. */
	if (writable != (permission == RK_WRITE))
		return RK_DROP_BAD_DIRECTION;
	if (permission == RK_READ && chain->bytes + length > limit)
		return RK_DROP_OVERSIZE;
	if (length && chain->bytes < limit)
		verdict = chain_add(queue, chain, address, length, permission);
	chain->bytes += length;
	return verdict;
}

#endif
