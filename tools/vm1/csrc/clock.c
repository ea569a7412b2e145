/* SPDX-License-Identifier: BSD-3-Clause */
#include <time.h>

#include "clock.h"
#include "vm1.h"

#define CALIBRATION_NS 20000000u

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t vm1_tsc_hz(void)
{
	uint64_t begin_ns = now_ns(), begin = tsc(), end_ns, end;

	do {
		end_ns = now_ns();
		end = tsc();
	} while (end_ns - begin_ns < CALIBRATION_NS);
	return (uint64_t)((double)(end - begin) * 1e9 / (double)(end_ns - begin_ns));
}
