/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Whether flushing pays is tried, because nothing else tells: it depends on the processor, on which CPUs
 * the host gives both sides, on what VM1's driver does, and on who waits for whom. A trial compares how long as many
 * chains take: the usual way, the other one, and the usual way again. A few trials in a row that the
 * other wins make it the usual one. If there is little to forward, both take as long, and nothing is flushed.
 */
#include "flush.h"

#include "isa.h"

#include <stdlib.h>
#include <string.h>

#define WINDOW 2048u
/* Of the usual way, before and after a trial; the best counts, for VM1 may pause in some. */
#define WINDOWS 4u
/* Until what is done otherwise shows: drivers may go round more buffers than a ring has places. */
#define LAP_LEAST 4096u
/* Between trials, in their length, and up to twice that: one in a hundred chains goes another way. */
#define RESTS 64u
/* Trials in a row that decide. */
#define WINS_MORE 3u
#define WINS_LESS 2u

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

/* By chance: rings of one lcore shall not try at the same time, nor in step with what VM1 does. */
static void rest(struct flush *flush, uint64_t now)
{
	const uint32_t least = RESTS * (WINDOW + flush->lap);

	go_on(flush, PHASE_REST, least + (uint32_t)(now % least));
}

void flush_begin(struct flush *flush, uint32_t ring_size, bool possible, uint64_t now)
{
	const char *said = getenv("PMD_KERNEL_FLUSH");

	*flush = (struct flush){.lap = ring_size < LAP_LEAST ? LAP_LEAST : ring_size,
				.other = FLUSH_FIRST};
	rest(flush, now);
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

enum outcome {
	OUTCOME_VOID, /* VM1 does something else than before, or the CPUs are others */
	OUTCOME_LOST,
	OUTCOME_WON,
};

/* To flush more has to bring a tenth, for it costs us cycles; to flush less may lose a twentieth. */
static enum outcome judge(const struct flush *flush)
{
	const uint64_t before = flush->before, after = flush->best;
	const uint64_t best = after < before ? after : before, worst = after < before ? before : after;
	const bool more = flush->other > flush->usual;

	if (worst > best + best / 4)
		return OUTCOME_VOID;
	return flush->tried < (more ? best - best / 10 : best + best / 20) ? OUTCOME_WON : OUTCOME_LOST;
}

/* After a trial: what is done from now on, and what is tried next. */
static void conclude(struct flush *flush)
{
	const uint32_t needed = flush->other > flush->usual ? WINS_MORE : WINS_LESS;
	const enum outcome outcome = judge(flush);

	rest(flush, flush->since);
	if (outcome == OUTCOME_VOID || (outcome == OUTCOME_WON && ++flush->won < needed))
		return;
	if (outcome == OUTCOME_WON)
		flush->usual = flush->level = flush->other;
	flush->won = 0;
	do
		flush->other = (uint8_t)((flush->other + 1) % FLUSH_LEVELS);
	while (flush->other == flush->usual);
}

static void look(struct flush *flush, enum phase phase)
{
	flush->windows = WINDOWS;
	flush->best = UINT64_MAX;
	go_on(flush, phase, WINDOW);
}

/* One of these windows took so long; whether it was the last. */
static bool looked(struct flush *flush, uint64_t took)
{
	if (took < flush->best)
		flush->best = took;
	flush->left = WINDOW;
	return --flush->windows == 0;
}

void flush_next(struct flush *flush, uint32_t over, uint64_t now)
{
	/* Of as many chains as a window is to have. */
	const uint64_t took = (now - flush->since) * WINDOW / (WINDOW + over);

	flush->since = now;
	switch ((enum phase)flush->phase) {
	case PHASE_FIXED:
		flush->left = UINT32_MAX;
		break;
	case PHASE_REST:
		look(flush, PHASE_BEFORE);
		break;
	case PHASE_BEFORE:
		if (!looked(flush, took))
			break;
		flush->before = flush->best;
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
		look(flush, PHASE_AFTER);
		break;
	case PHASE_AFTER:
		if (looked(flush, took))
			conclude(flush);
		break;
	}
}
