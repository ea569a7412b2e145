/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Whether flushing pays is tried, because nothing else tells: it depends on the processor, on which CPUs the host
 * gives both sides, on what VM1's driver does, and on who of the two waits for the other. A trial compares how long as many chains take:
 * the usual way, the other one, and the usual way again. Three trials in a row that the other wins make it the usual one. If VM1
 * has little to send, both take as long, and nothing is flushed.
 */
#include "flush.h"

#include "isa.h"

#include <stdlib.h>
#include <string.h>

#define WINDOW 2048u
/* Between trials: those that are lost cost less than a hundredth. */
#define REST (128u * WINDOW)
#define WINS 3u

enum phase {
	PHASE_FIXED,
	PHASE_REST,
	PHASE_BEFORE,
	PHASE_TURN, /* to the other way: lines are still as they were */
	PHASE_TRIAL,
	PHASE_TURN_BACK,
	PHASE_AFTER,
};

static const char *const names[FLUSH_LEVELS] = {
	[FLUSH_NOTHING] = "never",
	[FLUSH_FIRST] = "first",
	[FLUSH_ALL] = "all",
};

static void go_on(struct flush *flush, enum phase phase, uint32_t chains)
{
	flush->phase = (uint8_t)phase;
	flush->left = chains;
}

void flush_begin(struct flush *flush, uint32_t ring_size, bool possible)
{
	const char *said = getenv("PMD_KERNEL_FLUSH");

	*flush = (struct flush){.lap = ring_size, .other = FLUSH_FIRST};
	go_on(flush, PHASE_REST, REST);
	if (!possible || !isa_flushes()) {
		go_on(flush, PHASE_FIXED, UINT32_MAX);
		return;
	}
	for (uint32_t level = 0; said && level < FLUSH_LEVELS; level++) {
		if (strcmp(said, names[level]) != 0)
			continue;
		flush->level = flush->usual = (uint8_t)level;
		go_on(flush, PHASE_FIXED, UINT32_MAX);
	}
}

/* To flush more has to bring a tenth, for it costs us cycles; to flush less may lose a twentieth. */
static bool wins(const struct flush *flush, uint64_t after)
{
	const uint64_t best = after < flush->before ? after : flush->before;
	const uint64_t worst = after < flush->before ? flush->before : after;

	if (worst > best + best / 4)
		return false; /* VM1 paused, or the CPUs are others now */
	if (flush->other > flush->usual)
		return flush->tried < best - best / 10;
	return flush->tried < best + best / 20;
}

/* After a trial: what is done from now on, and what is tried next. */
static void conclude(struct flush *flush, uint64_t after)
{
	go_on(flush, PHASE_REST, REST);
	flush->won = wins(flush, after) ? flush->won + 1 : 0;
	if (flush->won == WINS) {
		flush->usual = flush->level = flush->other;
		flush->won = 0;
	}
	if (flush->won)
		return;
	do
		flush->other = (uint8_t)((flush->other + 1) % FLUSH_LEVELS);
	while (flush->other == flush->usual);
}

void flush_next(struct flush *flush, uint64_t now)
{
	const uint64_t took = now - flush->since;

	flush->since = now;
	switch ((enum phase)flush->phase) {
	case PHASE_FIXED:
		flush->left = UINT32_MAX;
		break;
	case PHASE_REST:
		go_on(flush, PHASE_BEFORE, WINDOW);
		break;
	case PHASE_BEFORE:
		flush->before = took;
		flush->level = flush->other;
		go_on(flush, PHASE_TURN, flush->lap);
		break;
	case PHASE_TURN:
		go_on(flush, PHASE_TRIAL, WINDOW);
		break;
	case PHASE_TRIAL:
		flush->tried = took;
		flush->level = flush->usual;
		go_on(flush, PHASE_TURN_BACK, flush->lap);
		break;
	case PHASE_TURN_BACK:
		go_on(flush, PHASE_AFTER, WINDOW);
		break;
	case PHASE_AFTER:
		conclude(flush, took);
		break;
	}
}
