/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Memory in cache lines of its own. What one lcore writes lies nowhere near what another one uses: else each
 * takes the line from the other at every burst.
 */
#ifndef LINES_H
#define LINES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Two lines: processors fetch them in aligned pairs (Intel's optimization manual, "Spatial Prefetcher"). */
#define LINES_BYTES 128u

/* To be free()d; NULL if there is none. Whole pairs of lines, so nothing else lies in the last one. */
static inline void *lines_new(size_t bytes)
{
	return aligned_alloc(LINES_BYTES, (bytes / LINES_BYTES + 1) * LINES_BYTES);
}

/* The same, zeroed, and so touched: no page fault later. */
static inline void *lines_zeroed(size_t count, size_t bytes)
{
	void *memory;

	if (bytes && count > (SIZE_MAX - LINES_BYTES) / bytes)
		return NULL;
	memory = lines_new(count * bytes);
	if (memory)
		memset(memory, 0, count * bytes);
	return memory;
}

#endif
