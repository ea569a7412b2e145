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

struct instant {
	uint64_t ns, cycles;
};

/* By both clocks: of several looks the one that took the least, so that no other thread ran within it. */
static struct instant instant_now(void)
{
	uint64_t least = UINT64_MAX;
	struct instant found = { 0 };

	for (uint32_t looks = 0; looks < 8; looks++) {
		uint64_t begin = tsc(), ns = now_ns(), end = tsc();

		if (end - begin >= least)
			continue;
		least = end - begin;
		found = (struct instant){ ns, begin };
	}
	return found;
}

uint64_t vm1_tsc_hz(void)
{
	struct instant start = instant_now(), now;

	do
		now = instant_now();
	while (now.ns - start.ns < CALIBRATION_NS);
	return (uint64_t)((double)(now.cycles - start.cycles) * 1e9 / (double)(now.ns - start.ns));
}
