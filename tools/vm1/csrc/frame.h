/* SPDX-License-Identifier: BSD-3-Clause */
/* A frame that can be checked: what verify mode sends and expects. latency mode's bear a time instead. */
#ifndef VM1_FRAME_H
#define VM1_FRAME_H

#include <stdbool.h>
#include <stdint.h>

#include "vm1.h"

#define FRAME_MAGIC 0x31764d56u
#define FRAME_ETHERTYPE 0xb588u /* 0x88b5, "local experimental", as it lies in memory */

enum frame_kind { FRAME_DATA = 1, FRAME_ACKNOWLEDGE = 2, FRAME_STAMP = 3 };

/* Both ends are this program on one kind of machine, so fields are in its byte order. */
struct frame {
	uint8_t destination[6];
	uint8_t source[6];
	uint16_t ethertype;
	uint8_t kind;
	uint8_t reserved;
	uint32_t magic;
	uint32_t stream;
	uint64_t sequence;
	uint64_t acknowledged; /* of the peer's stream: different frames received */
	uint64_t length;
	uint64_t checksum;     /* over the whole frame, this field as zero */
	/* then words that depend on the sequence number */
};

_Static_assert(sizeof(struct frame) <= VM1_FRAME_MIN, "the smallest frame holds the fields");
_Static_assert(sizeof(struct frame) == 56, "no padding");

/* Writes filler and checksum behind the fields that the caller has set; length is at least VM1_FRAME_MIN. */
void frame_seal(struct frame *frame, uint32_t length);
/* A sum of all bytes: of whatever they are. */
uint64_t frame_hash(const uint8_t *bytes, uint32_t length);
/* Whether these bytes are what frame_seal() left. */
bool frame_is_intact(const struct frame *frame, uint32_t length);

#endif
