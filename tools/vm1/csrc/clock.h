/* SPDX-License-Identifier: BSD-3-Clause */
/* The two clocks: nanoseconds for deadlines, TSC cycles for what is measured. */
#ifndef VM1_CLOCK_H
#define VM1_CLOCK_H

#include <stdint.h>

/* CLOCK_MONOTONIC. */
uint64_t now_ns(void);

static inline uint64_t tsc(void)
{
	return __builtin_ia32_rdtsc();
}

static inline void pause_cpu(void)
{
	__builtin_ia32_pause();
}

#endif
