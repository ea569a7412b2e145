/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Lines of VM1's memory, out of every cache before they are written again.
 *
 * A line that both cores have read is shared. Whoever writes it next waits until the other's copy is
 * gone, and such waits hardly overlap; fetches of a line that no cache has do. So VM1 may send up to 2.7
 * times as fast if we flush what we have read of it (descriptors, and the bytes of frames that were
 * copied), and we may write its buffers 1.4 times as fast if they are flushed before. That is of AMD's
 * Zen 4, most of all between CPUs with different caches; near ones lose by some of it, and other
 * processors may gain nothing. So each ring tries now and then what it does not do at present, and goes
 * the way by which its chains come back faster (flush.c). A patch's two rings do as the transmit ring finds.
 * What is flushed is in memory: nothing but time depends on it.
 */
#ifndef FLUSH_H
#define FLUSH_H

#include "cycles.h"
#include "shm.h"

#include <stdbool.h>

enum flush_level {
	FLUSH_NOTHING,
	FLUSH_FIRST, /* descriptors, and a frame's first 64 bytes: a driver may touch no more of it */
	FLUSH_ALL,   /* the same, and FLUSH_MOST bytes of a frame */
	FLUSH_LEVELS
};

/* Other rings of the lcore wait meanwhile. */
#define FLUSH_MOST 4096u

/* What one ring does, and how it finds out. */
struct flush {
	uint32_t left;      /* chains until flush_next() */
	uint32_t lap;       /* chains until all lines of the ring have been treated alike */
	uint8_t level;      /* enum flush_level: at present */
	uint8_t usual;      /* the same: what is done but for trials */
	uint8_t other;      /* what the next trial does */
	uint8_t won;        /* trials that the other has won in a row */
	uint8_t phase;      /* of flush.c */
	uint8_t windows;    /* to come of the same kind */
	uint64_t since;     /* TSC cycles: when the window at hand began */
	uint64_t best, before, tried; /* TSC cycles that windows took */
};

/*
 * PMD_KERNEL_FLUSH=never, first or all: no other way is tried. possible: the window's lines are cached, as
 * far as known. now: TSC cycles.
 */
void flush_begin(struct flush *flush, uint32_t ring_size, bool possible, uint64_t now);
/* As many chains as left says have gone back, and so many over that. */
void flush_next(struct flush *flush, uint32_t over, uint64_t now);

/* So many chains went back to VM1, by now(). */
static inline void flush_count(struct flush *flush, uint32_t chains, uint64_t (*now)(void))
{
	if (__builtin_expect(flush->left > chains, true))
		flush->left -= chains;
	else
		flush_next(flush, chains - flush->left, now());
}

/* Of a frame that was read, or will be written; level is not FLUSH_NOTHING. */
static inline void flush_frame(const void *frame, size_t bytes, uint32_t level)
{
	const uintptr_t begin = (uintptr_t)frame & ~(uintptr_t)(SHM_LINE - 1);
	const size_t limit = level == FLUSH_FIRST ? SHM_LINE : FLUSH_MOST;
	const size_t most = bytes < limit ? bytes : limit;

	for (uintptr_t line = begin; line < (uintptr_t)frame + most; line += SHM_LINE)
		shm_flush((const struct shm *)line);
}

#endif
