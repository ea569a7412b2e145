/* SPDX-License-Identifier: BSD-3-Clause */
/* A burst of frames of which some are done in software: what is given on in their place, and what became of it. */
#ifndef EXPANSION_H
#define EXPANSION_H

#include "offload.h"

/*
 * Of one ring, in private memory. Sources are frames with judged offloads, in order; each becomes one frame or
 * several, or, with a verdict of its own, none. The other side may take the first source's frames in several
 * bursts: then the source comes again and the expansion goes on where it was.
 */
struct expansion {
	const struct rk_port *port; /* of a receive ring: where the sources come from */
	uint32_t identification; /* of the first source; the next one's is one more */
	uint32_t begun;   /* frames of the first source that were taken before */
	uint32_t verdict; /* of those: RK_SENT, or the first other */
	uint32_t sources; /* whose frames follow; of the last perhaps not all */
	uint32_t count;   /* of frames */
	uint32_t used;    /* bytes of memory */
	uint16_t ends[RK_BURST_MAX]; /* by source: the index after its last frame; beyond count if there are more */
	struct rk_frame frames[RK_BURST_MAX];
	struct iovec segments[RK_BURST_MAX];
	uint8_t memory[2 * OFFLOAD_MEMORY_MIN];
};

/* Makes the frames of as many of n sources as there is room for: of those that are done_here; the others stay. */
void expansion_make(struct expansion *expansion, struct rk_frame *sources, uint32_t n);

/* The first `taken` frames are gone, with the verdicts that they have: how many sources are done with. These get
 * their verdicts: of several frames' the first that is not RK_SENT. */
uint32_t expansion_take(struct expansion *expansion, struct rk_frame *sources, uint32_t taken);

/* The first source is not the one that it was. */
static inline void expansion_forget(struct expansion *expansion)
{
	expansion->identification++;
	expansion->begun = 0;
	expansion->verdict = RK_SENT;
}

#endif
