/* SPDX-License-Identifier: BSD-3-Clause */
/* Which sequence numbers of a stream came: once, twice, late. */
#ifndef VM1_SEQUENCE_H
#define VM1_SEQUENCE_H

#include <stdint.h>

/* More than ever can be in flight; a number older than this is taken for a duplicate. */
#define SEQUENCE_WINDOW (1u << 17)

enum sequence_verdict { SEQUENCE_NEW, SEQUENCE_LATE, SEQUENCE_DUPLICATE };

struct sequence {
	uint64_t next;     /* the highest number seen, and one */
	uint64_t distinct; /* different numbers seen */
	uint64_t seen[SEQUENCE_WINDOW / 64];
};

enum sequence_verdict sequence_mark(struct sequence *sequence, uint64_t number);

#endif
