/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which instructions the kernel uses beyond those that every processor of its kind has. What is compiled for more
 * gives the same answers as the scalar code beside it; tests run all of them.
 */
#ifndef ISA_H
#define ISA_H

#include <stdint.h>

/* Each has all of those before it. */
enum isa {
	ISA_SCALAR,
	ISA_AVX2,
	ISA_AVX512, /* F, BW, VL */
	ISA_COUNT
};

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))

/* Of all loops of the process; isa_choose() sets it. */
extern uint32_t isa_chosen;

static inline uint32_t isa(void)
{
	return __atomic_load_n(&isa_chosen, __ATOMIC_RELAXED);
}

/* What PMD_KERNEL_ISA names, as far as the processor has it; without, the most it has. Whenever a queue is made. */
void isa_choose(void);

#endif
