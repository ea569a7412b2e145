/* SPDX-License-Identifier: BSD-3-Clause */
/* Frames in order, those done in software in private memory; and back from what was taken to where they came from. */
#include "expansion.h"

/* Adds the frames of one source; false if there was not room for all. */
static bool add(struct expansion *expansion, struct rk_frame *sources, uint32_t i)
{
	const uint32_t count = expansion->count;
	const struct offload_room room = {
		.frames = &expansion->frames[count],
		.segments = &expansion->segments[count],
		.memory = expansion->memory + expansion->used,
		.frame_count = RK_BURST_MAX - count,
		.memory_bytes = (uint32_t)sizeof(expansion->memory) - expansion->used,
		.identification = expansion->identification + i,
	};
	const uint32_t first = i == 0 ? expansion->begun : 0;
	struct rk_frame *source = &sources[i];
	struct offload_made made;

	source->verdict = offload_make(source, first, &room, &made);
	if (source->verdict != RK_SENT)
		return true;
	expansion->count += made.frames;
	expansion->used += made.memory_bytes;
	return first + made.frames >= made.total;
}

void expansion_make(struct expansion *expansion, struct rk_frame *sources, uint32_t n)
{
	bool whole = true;
	uint32_t i;

	expansion->count = 0;
	expansion->used = 0;
	for (i = 0; i < n && whole && expansion->count < RK_BURST_MAX; i++) {
		if (sources[i].verdict == RK_SENT) {
			if (sources[i].done_here)
				whole = add(expansion, sources, i);
			else
				expansion->frames[expansion->count++] = sources[i];
		}
		expansion->ends[i] = (uint16_t)(expansion->count + !whole);
	}
	expansion->sources = i;
}

uint32_t expansion_take(struct expansion *expansion, struct rk_frame *sources, uint32_t taken)
{
	uint32_t frame = 0, i;

	for (i = 0; i < expansion->sources && expansion->ends[i] <= taken; i++) {
		if (i == 0 && expansion->verdict != RK_SENT)
			sources[0].verdict = expansion->verdict;
		for (; frame < expansion->ends[i]; frame++)
			if (sources[i].verdict == RK_SENT)
				sources[i].verdict = expansion->frames[frame].verdict;
	}
	if (i > 0) {
		expansion->identification += i - 1;
		expansion_forget(expansion);
	}
	expansion->begun += taken - frame;
	for (; frame < taken; frame++)
		if (expansion->verdict == RK_SENT)
			expansion->verdict = expansion->frames[frame].verdict;
	return i;
}
