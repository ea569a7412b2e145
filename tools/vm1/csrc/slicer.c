/* SPDX-License-Identifier: BSD-3-Clause */
#include "slicer.h"

void slicer_begin(struct slicer *slicer, uint64_t now)
{
	slicer->count = 0;
	slicer->begin = slicer->moved = now;
	slicer->now = (struct vm1_slice){ 0 };
}

void slicer_cut(struct slicer *slicer, uint64_t now)
{
	slicer->now.cycles = now - slicer->begin;
	if (slicer->count < VM1_SLICES_MAX)
		slicer->slices[slicer->count++] = slicer->now;
	slicer->begin = now;
	slicer->now = (struct vm1_slice){ 0 };
}
