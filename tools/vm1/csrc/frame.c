/* SPDX-License-Identifier: BSD-3-Clause */
#include <stddef.h>
#include <string.h>

#include "frame.h"

#define LANES 4u
#define CHECKSUM_WORD (offsetof(struct frame, checksum) / 8)
/* Odd, so that multiplication loses nothing: a change of one word always changes the sum. */
#define MULTIPLIER 0x9e3779b97f4a7c15ull

_Static_assert(offsetof(struct frame, checksum) % 8 == 0, "a word of its own");

static uint64_t load(const uint8_t *bytes, uint32_t count)
{
	uint64_t word = 0;

	memcpy(&word, bytes, count);
	return word;
}

/* A word as it counts: the checksum's own counts as zero. */
static uint64_t counted(const uint8_t *bytes, uint32_t word, uint32_t without)
{
	return word == without ? 0 : load(bytes + word * 8, 8);
}

/* Independent lanes keep the multiplier busy; every byte enters one of them. */
static uint64_t sum(const void *start, uint32_t length, uint32_t without)
{
	const uint8_t *bytes = start;
	uint64_t lanes[LANES] = { 1, 2, 3, 4 }, all = length;
	uint32_t words = length / 8, word = 0;

	for (; word + LANES <= words; word += LANES)
		for (uint32_t lane = 0; lane < LANES; lane++)
			lanes[lane] = (lanes[lane] ^ counted(bytes, word + lane, without)) * MULTIPLIER;
	for (; word < words; word++)
		lanes[word % LANES] = (lanes[word % LANES] ^ counted(bytes, word, without)) * MULTIPLIER;
	if (length % 8)
		lanes[0] = (lanes[0] ^ load(bytes + words * 8, length % 8)) * MULTIPLIER;
	for (uint32_t lane = 0; lane < LANES; lane++)
		all = (all ^ lanes[lane] ^ (lanes[lane] >> 32)) * MULTIPLIER;
	return all;
}

void frame_seal(struct frame *frame, uint32_t length)
{
	uint8_t *bytes = (uint8_t *)frame;
	uint64_t filler = (frame->sequence ^ frame->stream) * MULTIPLIER;
	uint32_t offset = sizeof(*frame);

	frame->length = length;
	for (; offset + 8 <= length; offset += 8) {
		filler += MULTIPLIER;
		memcpy(bytes + offset, &filler, 8);
	}
	if (offset < length)
		memcpy(bytes + offset, &filler, length - offset);
	frame->checksum = sum(frame, length, CHECKSUM_WORD);
}

bool frame_is_intact(const struct frame *frame, uint32_t length)
{
	return length >= VM1_FRAME_MIN && frame->length == length &&
	       frame->checksum == sum(frame, length, CHECKSUM_WORD);
}

uint64_t frame_hash(const uint8_t *bytes, uint32_t length)
{
	return sum(bytes, length, UINT32_MAX);
}
