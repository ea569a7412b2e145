/* SPDX-License-Identifier: BSD-3-Clause */
#include <string.h>

#include "sequence.h"

static uint64_t *word_of(struct sequence *sequence, uint64_t number)
{
	return &sequence->seen[number % SEQUENCE_WINDOW / 64];
}

enum sequence_verdict sequence_mark(struct sequence *sequence, uint64_t number)
{
	uint64_t bit = 1ull << (number % 64);

	if (number < sequence->next) {
		if (sequence->next - number > SEQUENCE_WINDOW || *word_of(sequence, number) & bit)
			return SEQUENCE_DUPLICATE;
		*word_of(sequence, number) |= bit;
		sequence->distinct++;
		return SEQUENCE_LATE;
	}
	/* What the window moves over was not seen yet. */
	if (number - sequence->next >= SEQUENCE_WINDOW)
		memset(sequence->seen, 0, sizeof(sequence->seen));
	else
		for (uint64_t gap = sequence->next; gap < number; gap++)
			*word_of(sequence, gap) &= ~(1ull << (gap % 64));
	*word_of(sequence, number) |= bit;
	sequence->next = number + 1;
	sequence->distinct++;
	return SEQUENCE_NEW;
}
