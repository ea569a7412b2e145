/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * VM1's lines, out of every cache before VM1 writes them again.
 *
 * A line that this core has read is shared, and VM1's next store to it waits until our copy is gone; such waits hardly overlap.
 * Of a line that no cache has, they do. So VM1 may send up to 2.7 times as fast if we flush what we have read of it: descriptors, and
 * the bytes of frames that were copied. That is of AMD's Zen 4, most of all between CPUs with different caches; it costs us cycles,
 * and elsewhere it may gain nothing. So each transmit ring tries now and then what it does not do at present, and goes
 * the way by which VM1's chains come faster (flush.c). What is flushed is in memory: nothing but time depends on it.
 */
#ifndef FLUSH_H
#define FLUSH_H

#include "shm.h"

#include <stdbool.h>

enum flush_level {
	FLUSH_NOTHING,
	FLUSH_FIRST, /* descriptors, and the first line of what was read of a frame: a driver may write headers alone */
	FLUSH_ALL,   /* and all the others */
	FLUSH_LEVELS
};

/* What one transmit ring does, and how it finds out. */
struct flush {
	uint32_t left;      /* chains until flush_next() */
	uint32_t lap;       /* chains until all lines of the ring have been treated alike */
	uint8_t level;      /* enum flush_level: at present */
	uint8_t usual;      /* the same: what is done but for trials */
	uint8_t other;      /* what the next trial does */
	uint8_t won;        /* trials that the other has won in a row */
	uint8_t phase;      /* of flush.c */
	uint64_t since;     /* TSC cycles: when the window at hand began */
	uint64_t before, tried; /* what windows of as many chains took */
};

/*
 * PMD_KERNEL_FLUSH=never, first or all: it is tried no other way. possible: the window is cached, and the processor can.
 */
void flush_begin(struct flush *flush, uint32_t ring_size, bool possible);
/* As long as left says, or longer, has gone by. */
void flush_next(struct flush *flush, uint64_t now);

/* So many chains went back to VM1 by now. */
static inline void flush_count(struct flush *flush, uint32_t chains, uint64_t now)
{
	if (__builtin_expect(flush->left > chains, true))
		flush->left -= chains;
	else
		flush_next(flush, now);
}

/* Of a frame that was read; level is not FLUSH_NOTHING. */
static inline void flush_frame(const void *from, size_t bytes, uint32_t level)
{
	const uintptr_t begin = (uintptr_t)from & ~(uintptr_t)(SHM_LINE - 1);
	const size_t most = level == FLUSH_FIRST && bytes > SHM_LINE ? SHM_LINE : bytes;

	for (uintptr_t line = begin; line < (uintptr_t)from + most; line += SHM_LINE)
		shm_flush((const struct shm *)line);
}

#endif
