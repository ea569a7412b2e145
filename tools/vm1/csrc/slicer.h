/* SPDX-License-Identifier: BSD-3-Clause */
/* Cuts a replay into slices of equal length, and notes what moved in each and how long nothing did. */
#ifndef VM1_SLICER_H
#define VM1_SLICER_H

#include <stdint.h>

#include "vm1.h"

struct slicer {
	uint64_t length;      /* cycles; 0: notes nothing */
	uint64_t begin;       /* of the slice */
	uint64_t moved;       /* when something moved last */
	struct vm1_slice now; /* the slice under way */
	uint32_t count;
	struct vm1_slice slices[VM1_SLICES_MAX];
};

void slicer_begin(struct slicer *slicer, uint64_t now);
void slicer_cut(struct slicer *slicer, uint64_t now);

/* A turn ended. A turn that was interrupted ends late, so that one measure tells both ways to stand still. */
static inline void slicer_note(struct slicer *slicer, uint64_t now, uint32_t sent,
			       uint32_t received)
{
	uint64_t still = now - slicer->moved;

	slicer->now.sent += sent;
	slicer->now.received += received;
	if (still > slicer->now.still_cycles)
		slicer->now.still_cycles = still;
	if (sent | received)
		slicer->moved = now;
	if (slicer->length && now - slicer->begin >= slicer->length)
		slicer_cut(slicer, now);
}

#endif
