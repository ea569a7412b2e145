/* SPDX-License-Identifier: BSD-3-Clause */
#include <string.h>

#include "ring.h"

_Static_assert(sizeof(struct desc) == 16, "2.7.5");
_Static_assert(sizeof(struct used_element) == 8, "2.7.8");
_Static_assert(sizeof(struct avail_ring) == 4, "2.7.6");
_Static_assert(sizeof(struct used_ring) == 4, "2.7.8");

/* used_event is renewed before the index comes round to it, or the device would call once a lap. */
#define EVENT_STALE 0x4000u

static _Atomic uint16_t *used_event(const struct ring *ring)
{
	return &ring->avail->entries[ring->size];
}

static uint16_t avail_event(const struct ring *ring)
{
	const void *after = &ring->used->elements[ring->size];

	return atomic_load_explicit((const _Atomic uint16_t *)after, memory_order_relaxed);
}

static struct desc make_desc(const struct ring *ring, uint32_t slot, uint32_t bytes, uint32_t part)
{
	uint32_t base = ring->flags & VM1_RING_INDIRECT ? 0 : slot * ring->segments;
	struct piece piece = ring_piece(ring, slot, bytes, part);
	struct desc desc = {
		.address = piece.address,
		.length = piece.length,
		.flags = piece.flags,
	};

	if (part + 1 < ring->segments) {
		desc.flags |= DESC_F_NEXT;
		desc.next = (uint16_t)(base + part + 1);
	}
	return desc;
}

static struct desc make_indirect(const struct ring *ring, uint32_t slot)
{
	struct piece piece = ring_table_piece(ring, slot);

	return (struct desc){
		.address = piece.address,
		.length = piece.length,
		.flags = piece.flags,
	};
}

static struct desc *table_of(const struct ring *ring, uint32_t slot)
{
	if (ring->flags & VM1_RING_INDIRECT)
		return (struct desc *)(uintptr_t)ring->indirect_host + slot * ring->segments;
	return ring->desc + slot * ring->segments;
}

void split_describe(struct ring *ring, uint32_t slot, uint32_t bytes)
{
	struct desc *table = table_of(ring, slot);

	for (uint32_t part = 0; part < ring->segments; part++)
		table[part] = make_desc(ring, slot, bytes, part);
	if (ring->flags & VM1_RING_INDIRECT)
		ring->desc[slot] = make_indirect(ring, slot);
}

bool split_desc_intact(const struct ring *ring, uint32_t slot, uint32_t bytes)
{
	const struct desc *table = table_of(ring, slot);
	struct desc expected;

	for (uint32_t part = 0; part < ring->segments; part++) {
		expected = make_desc(ring, slot, bytes, part);
		if (memcmp(&table[part], &expected, sizeof(expected)))
			return false;
	}
	if (!(ring->flags & VM1_RING_INDIRECT))
		return true;
	expected = make_indirect(ring, slot);
	return !memcmp(&ring->desc[slot], &expected, sizeof(expected));
}

void split_show(struct ring *ring)
{
	/* Pairs with the device's acquire of avail.idx: descriptors and entries come first. */
	atomic_store_explicit(&ring->avail->index, ring->avail_index, memory_order_release);
}

bool split_wants_kick(const struct ring *ring, uint16_t old)
{
	uint16_t new = ring->published;

	if (ring->flags & VM1_RING_EVENT_IDX)
		return (uint16_t)(new - avail_event(ring) - 1) < (uint16_t)(new - old);
	return !(atomic_load_explicit(&ring->used->flags, memory_order_relaxed) & USED_F_NO_NOTIFY);
}

void split_set_calls(struct ring *ring, bool wanted)
{
	ring->event = (uint16_t)(ring->used_index - !wanted);
	if (ring->flags & VM1_RING_EVENT_IDX)
		atomic_store_explicit(used_event(ring), ring->event, memory_order_relaxed);
	else
		atomic_store_explicit(&ring->avail->flags, wanted ? 0 : AVAIL_F_NO_INTERRUPT,
				      memory_order_relaxed);
}

uint32_t split_look(struct ring *ring)
{
	uint16_t index, ready;

	if (ring->broken)
		return 0;
	/* Pairs with the device's release of used.idx: elements and data came first. */
	index = atomic_load_explicit(&ring->used->index, memory_order_acquire);
	ready = (uint16_t)(index - ring->used_index);
	if (!ready)
		return 0;
	if (ready > (uint16_t)(ring->published - ring->used_index)) {
		ring->stats->index_jump++;
		ring->broken = true;
		return 0;
	}
	ring->used_seen = index;
	if ((uint16_t)(ring->used_index - ring->event) > EVENT_STALE)
		split_set_calls(ring, false);
	return ready;
}
