/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How fast a window can be read, which tells how it is mapped. Only reads, of its first MiB: reading a
 * page of a memory file gives the page its memory. Both take the best of many batches, since what a
 * preempted thread lost is not the window's fault, and end with the batch in which the budget does.
 */
#include "ringk.h"
#include "shm.h"

#include <time.h>

#define PROBE_BYTES (1u << 20)
#define LINE_BYTES 64u
/* A power of two, and so few lines that a cached mapping answers from the first-level cache. */
#define HOT_LINES 16u
#define LOADS 256u
/* A batch of lines, so that the first touch of a page, which may fault, is in no other's time. */
#define PAGE_BYTES 4096u

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* Each load's address depends on what the one before returned. */
static void load_batch(struct shm *base)
{
	uint64_t zero = 0, offset = 0;

	/* Neither compiler nor processor may know that nothing is added. */
	__asm__ volatile("" : "+r"(zero));
	for (uint32_t i = 0; i < LOADS; i++)
		offset = LINE_BYTES * (i % HOT_LINES) + (shm_load64(shm_at(base, offset)) & zero);
	__asm__ volatile("" : : "r"(offset));
}

static void line_batch(struct shm *page)
{
	uint8_t line[LINE_BYTES] __attribute__((aligned(16)));

	for (uint32_t i = 0; i < PAGE_BYTES / LINE_BYTES; i++) {
		shm_stream_line(line, shm_at(page, LINE_BYTES * i));
		__asm__ volatile("" : : "r"(line) : "memory");
	}
}

uint64_t rk_probe_load_ps(void *base, uint64_t bytes, uint64_t budget_ns)
{
	uint64_t begin = now_ns(), now = begin, best = UINT64_MAX;

	if (bytes < PAGE_BYTES)
		return 0;
	do {
		uint64_t start = now;

		load_batch((struct shm *)base);
		now = now_ns();
		if (now - start < best)
			best = now - start;
	} while (now - begin < budget_ns);
	return best * 1000u / LOADS;
}

uint64_t rk_probe_line_ps(void *base, uint64_t bytes, uint64_t budget_ns)
{
	uint64_t pages = (bytes < PROBE_BYTES ? bytes : PROBE_BYTES) / PAGE_BYTES;
	uint64_t begin = now_ns(), now = begin, best = UINT64_MAX, page = 0;

	if (pages == 0)
		return 0;
	do {
		uint64_t start = now;

		line_batch(shm_at((struct shm *)base, PAGE_BYTES * page));
		now = now_ns();
		if (now - start < best)
			best = now - start;
		page = (page + 1) % pages;
	} while (now - begin < budget_ns);
	return best * 1000u * LINE_BYTES / PAGE_BYTES;
}
