/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ring.h"

_Static_assert(sizeof(struct packed_desc) == 16, "2.8.13");
_Static_assert(sizeof(union packed_event) == 4, "2.8.14");

int packed_init(struct ring *ring)
{
	/* 2.8.1: both wrap counters begin as 1; available are those whose USED flag is not AVAIL. */
	ring->avail_flags = PACKED_F_AVAIL;
	ring->used_flags = PACKED_F_BOTH;
	if (ring->chain == 1)
		return 0;
	ring->shadow = calloc(ring->size, sizeof(*ring->shadow));
	return ring->shadow ? 0 : ENOMEM;
}

static struct packed_desc *table_of(const struct ring *ring, uint32_t slot)
{
	return (struct packed_desc *)(uintptr_t)ring->indirect_host + slot * ring->segments;
}

/* 2.8.7: in a table only address, length and WRITE count. */
static struct packed_desc table_desc(const struct ring *ring, uint32_t slot, uint32_t bytes,
				     uint32_t part)
{
	struct piece piece = ring_piece(ring, slot, bytes, part);

	return (struct packed_desc){
		.address = piece.address,
		.word = packed_word(piece.length, 0, piece.flags),
	};
}

static void describe_indirect(struct ring *ring, uint32_t slot, uint32_t bytes)
{
	struct piece piece = ring_table_piece(ring, slot);

	for (uint32_t part = 0; part < ring->segments; part++)
		table_of(ring, slot)[part] = table_desc(ring, slot, bytes, part);
	packed_put(ring, piece.address,
		   packed_word(piece.length, slot, ring->avail_flags | piece.flags),
		   ring->avail_index == ring->published);
}

void packed_describe(struct ring *ring, uint32_t slot, uint32_t bytes)
{
	if (ring->flags & VM1_RING_INDIRECT) {
		describe_indirect(ring, slot, bytes);
		return;
	}
	for (uint32_t part = 0; part < ring->segments; part++) {
		struct piece piece = ring_piece(ring, slot, bytes, part);
		uint32_t next = part + 1 < ring->segments ? DESC_F_NEXT : 0;
		uint64_t word = packed_word(piece.length, slot,
					    ring->avail_flags | piece.flags | next);

		ring->shadow[ring->avail_position] = (struct packed_desc){
			.address = piece.address,
			.word = word,
		};
		packed_put(ring, piece.address, word, !part && ring->avail_index == ring->published);
	}
}

static bool same(const struct packed_desc *one, const struct packed_desc *other)
{
	return one->address == other->address &&
	       atomic_load_explicit(&one->word, memory_order_relaxed) ==
		       atomic_load_explicit(&other->word, memory_order_relaxed);
}

/* Of the descriptors in the ring the device writes each buffer's first (2.8.6), and no other. */
bool packed_desc_intact(const struct ring *ring, const struct used_chain *taken)
{
	uint32_t position = taken->position;

	for (uint32_t part = 1; part < ring->chain; part++) {
		position = position + 1 == ring->size ? 0 : position + 1;
		if (!same(&ring->packed_desc[position], &ring->shadow[position]))
			return false;
	}
	if (!(ring->flags & VM1_RING_INDIRECT))
		return true;
	for (uint32_t part = 0; part < ring->segments; part++) {
		struct packed_desc expected = table_desc(ring, taken->slot, taken->posted, part);

		if (!same(&table_of(ring, taken->slot)[part], &expected))
			return false;
	}
	return true;
}

void packed_show(struct ring *ring)
{
	if (ring->avail_index != ring->published)
		atomic_store_explicit(&ring->packed_desc[ring->first_position].word,
				      ring->first_word, memory_order_release);
}

static uint32_t position_word(uint32_t position, uint32_t flags)
{
	return position | (flags & PACKED_F_AVAIL ? PACKED_WRAP : 0);
}

bool packed_wants_kick(const struct ring *ring, uint16_t old)
{
	uint32_t event = atomic_load_explicit(&ring->device_event->word, memory_order_relaxed);
	uint32_t shown = (uint16_t)(ring->published - old) * ring->chain;
	uint32_t position = event & (PACKED_WRAP - 1), behind = ring->avail_position;

	switch (event & (3u << 16)) {
	case PACKED_EVENT_DISABLE:
		return false;
	case PACKED_EVENT_DESC:
		break;
	default:
		return true;
	}
	/* 2.8.14: whether that descriptor, of its lap, is one of those just shown. */
	if (position >= ring->size)
		return false;
	if ((event & PACKED_WRAP) != (position_word(0, ring->avail_flags) & PACKED_WRAP))
		behind += ring->size;
	return behind > position && behind - position <= shown;
}

void packed_set_calls(struct ring *ring, bool wanted)
{
	uint32_t word = PACKED_EVENT_DISABLE;

	if (wanted && (ring->flags & VM1_RING_EVENT_IDX))
		word = PACKED_EVENT_DESC | position_word(ring->used_position, ring->used_flags);
	else if (wanted)
		word = PACKED_EVENT_ENABLE;
	atomic_store_explicit(&ring->driver_event->word, word, memory_order_relaxed);
}

/* How many buffers a used descriptor stands for: with IN_ORDER all up to the one it names (2.8.9). */
static uint32_t covered(const struct ring *ring, uint64_t word, uint16_t index, uint32_t flying)
{
	uint32_t slot = (uint16_t)(word >> 32);

	for (uint32_t ahead = 0; (ring->flags & VM1_RING_IN_ORDER) && ahead < flying; ahead++)
		if (ring->order[(uint16_t)(index + ahead) & ring->mask] == slot)
			return ahead + 1;
	return 1;
}

uint32_t packed_base(struct ring *ring)
{
	struct ring ahead = *ring;
	uint32_t flying, count, base;

	while (!ahead.broken) {
		uint64_t word = packed_read(&ahead);

		flying = (uint16_t)(ahead.published - ahead.used_index);
		if (!flying || (!ahead.batch_left && !packed_is_used(&ahead, word)))
			break;
		count = ahead.batch_left ? ahead.batch_left :
					   covered(&ahead, word, ahead.used_index, flying);
		ahead.batch_left = 0;
		while (count--)
			packed_skip(&ahead);
	}
	base = position_word(ahead.used_position, ahead.used_flags);
	return base | base << 16;
}
