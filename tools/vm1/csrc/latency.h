/* SPDX-License-Identifier: BSD-3-Clause */
/* Frames sent by the clock, whatever comes back, and how long each was under way. */
#ifndef VM1_LATENCY_H
#define VM1_LATENCY_H

#include <stdint.h>

#include "vm1.h"

struct latency {
	uint64_t step;         /* which vm1_latency_begin() a frame belongs to */
	uint64_t begin;        /* TSC when the step began */
	double cycles;         /* between two frames; 0: no step has begun */
	struct vm1_latency found;
};

/* Where a number of cycles is counted: one a bucket below 128, then 64 buckets to each doubling. */
static inline uint32_t latency_bucket(uint64_t cycles)
{
	uint32_t shift;

	if (cycles < 128)
		return (uint32_t)cycles;
	shift = 57u - (uint32_t)__builtin_clzll(cycles);
	if (shift > VM1_LATENCY_BUCKETS / 64 - 2)
		return VM1_LATENCY_BUCKETS - 1;
	return shift * 64 + (uint32_t)(cycles >> shift);
}

#endif
