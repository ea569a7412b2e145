/* SPDX-License-Identifier: BSD-3-Clause */
#include "isa.h"

#include "ringk.h"

#include <stdlib.h>
#include <string.h>

uint32_t isa_chosen = ISA_SCALAR;

static uint32_t best(void)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("avx2"))
		return ISA_AVX2;
#endif
	return ISA_SCALAR;
}

void isa_choose(void)
{
	const char *said = getenv("PMD_KERNEL_ISA");
	const uint32_t chosen = said && strcmp(said, "scalar") == 0 ? ISA_SCALAR : best();

	__atomic_store_n(&isa_chosen, chosen, __ATOMIC_RELAXED);
}

const char *rk_isa(void)
{
	return isa() == ISA_AVX2 ? "avx2" : "scalar";
}
