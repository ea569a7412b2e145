/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Translations that are not there yet: VM1's descriptors hold I/O virtual addresses, and its VMM tells what they
 * are when it is asked (docs/device.md 5.8). A chain that lacks one stays available, and the ring waits before it.
 */
#ifndef MISSING_H
#define MISSING_H

#include "queue.h"

/* So much of a buffer is asked for at once. */
#define MISSING_BYTES_MAX 65536u

struct missing {
	uint32_t count, refused_count;
	struct rk_miss misses[RK_MISSES_MAX]; /* to be asked for */
	struct rk_miss *refused;
};

/* Of a part of a chain that the map lacks: RK_SENT if the walk may go on, to find what else is missing. */
enum rk_drop missing_buffer(struct rk_queue *queue, struct chain *chain, uint64_t bus, uint64_t length,
			    uint32_t permission);
/* Of an indirect table: the verdict of its chain. */
enum rk_drop missing_table(struct rk_queue *queue, uint64_t bus, uint64_t length);
void missing_free(struct missing *missing);

/* The verdict of a walked chain, whose own one was good. */
static inline enum rk_drop chain_verdict(const struct chain *chain, enum rk_drop verdict)
{
	return __builtin_expect(chain->missing, false) && verdict == RK_SENT
		       ? (enum rk_drop)CHAIN_MISSING
		       : verdict;
}

/* The event of a ring that is not to be touched; one that has told what it lacks waits without a word. */
static inline uint32_t missing_or_fault(const struct rk_queue *queue)
{
	if (queue->fault != RK_FAULT_MISSING)
		return RK_EVENT_FAULT;
	return queue->missing->count ? RK_EVENT_MISSING : 0;
}

/* Whether there is room for more. */
static inline bool missing_full(const struct rk_queue *queue)
{
	return !queue->missing || queue->missing->count == RK_MISSES_MAX;
}

#endif
