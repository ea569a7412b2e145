/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which instructions the kernel uses beyond those that every processor of its kind has. What is compiled for more
 * gives the same answers as the scalar code beside it; tests run all of them.
 */
#ifndef ISA_H
#define ISA_H

#include <stdbool.h>
#include <stdint.h>

/* Each has all of those before it. */
enum isa {
	ISA_SCALAR,
	ISA_AVX2,
	ISA_AVX512, /* F, BW, VL */
	ISA_COUNT
};

/* Unless told otherwise: AVX-512 takes fewer cycles, but the processor's clock goes down (docs/performance.md). */
#define ISA_PAYS ISA_AVX2

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))

/* Of all loops of the process; isa_choose() sets it. */
extern uint32_t isa_chosen;

static inline uint32_t isa(void)
{
	return __atomic_load_n(&isa_chosen, __ATOMIC_RELAXED);
}

/* Whether there is shm_flush(). */
bool isa_flushes(void);

/* What PMD_KERNEL_ISA names, as far as the processor has it; without, what pays. Whenever a queue is made. */
void isa_choose(void);

#endif
