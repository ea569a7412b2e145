/* SPDX-License-Identifier: BSD-3-Clause */
#include "isa.h"

#include "ringk.h"

#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

uint32_t isa_chosen = ISA_SCALAR;

static const char *const names[] = {
	[ISA_SCALAR] = "scalar",
	[ISA_AVX2] = "avx2",
	[ISA_AVX512] = "avx512",
};

/* The last that the processor has. */
static uint32_t most(void)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	    __builtin_cpu_supports("avx512vl"))
		return ISA_AVX512;
	if (__builtin_cpu_supports("avx2"))
		return ISA_AVX2;
#endif
	return ISA_SCALAR;
}

bool isa_flushes(void)
{
#if defined(__x86_64__)
	uint32_t a, b = 0, c, d;

	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & bit_CLFLUSHOPT;
#else
	return false;
#endif
}

void isa_choose(void)
{
	const char *said = getenv("PMD_KERNEL_ISA");
	const uint32_t has = most();
	uint32_t chosen = ISA_PAYS;

	for (uint32_t i = 0; said && i < ISA_COUNT; i++)
		if (strcmp(said, names[i]) == 0)
			chosen = i;
	__atomic_store_n(&isa_chosen, chosen < has ? chosen : has, __ATOMIC_RELAXED);
}

const char *rk_isa(void)
{
	return names[isa()];
}

const char *rk_isa_name(uint32_t isa)
{
	return isa <= most() ? names[isa] : NULL;
}
