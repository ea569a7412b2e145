/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which instructions the kernel uses beyond those that every processor of its kind has. What is compiled for more
 * gives the same answers as the scalar code beside it; tests run both.
 */
#ifndef ISA_H
#define ISA_H

#include <stdint.h>

enum isa {
	ISA_SCALAR,
	ISA_AVX2,
};

/* Of all loops of the process; isa_choose() sets it. */
extern uint32_t isa_chosen;

static inline uint32_t isa(void)
{
	return __atomic_load_n(&isa_chosen, __ATOMIC_RELAXED);
}

/* The best that the processor has, or with PMD_KERNEL_ISA=scalar none. Whenever a queue is made. */
void isa_choose(void);

#endif
