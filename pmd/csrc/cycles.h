/* SPDX-License-Identifier: BSD-3-Clause */
/* The cycle counter: TSC, or what the machine has in its place; rk_tsc_hz() is its frequency. */
#ifndef CYCLES_H
#define CYCLES_H

#include <stdint.h>

static inline uint64_t cycles_now(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
	uint64_t value;

	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
	return value;
#else
#error "no cycle counter known for this machine"
#endif
}

#endif
