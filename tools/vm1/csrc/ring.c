/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static bool geometry_is_sane(const struct vm1_ring_config *config)
{
	if (!config->size || config->size > 32768 || (config->size & (config->size - 1)))
		return false;
	if (!config->chain || config->chain > VM1_CHAIN_MAX || !config->slot_count)
		return false;
	if (config->flags & VM1_RING_INDIRECT)
		return config->indirect_host && config->slot_count <= config->size;
	return (uint64_t)config->slot_count * config->chain <= config->size;
}

int ring_init(struct ring *ring, const struct vm1_ring_config *config, uint32_t header_bytes,
	      struct vm1_stats *stats)
{
	if (!geometry_is_sane(config))
		return EINVAL;
	ring->desc = (struct desc *)(uintptr_t)config->desc;
	ring->avail = (struct avail_ring *)(uintptr_t)config->avail;
	ring->used = (struct used_ring *)(uintptr_t)config->used;
	ring->indirect_host = config->indirect_host;
	ring->indirect_bus = config->indirect_bus;
	ring->stats = stats;
	ring->size = config->size;
	ring->mask = config->size - 1;
	ring->slot_count = config->slot_count;
	ring->flags = config->flags;
	ring->segments = config->chain;
	ring->chain = config->flags & VM1_RING_INDIRECT ? 1 : config->chain;
	ring->chain_shift = ring->chain & (ring->chain - 1) ? 32 : (uint32_t)__builtin_ctz(ring->chain);
	ring->simple = config->chain == 1 && !(config->flags & VM1_RING_INDIRECT);
	ring->header_bytes = header_bytes;
	ring->capacity = header_bytes + config->frame_capacity;
	ring->kick_fd = config->kick_fd;
	ring->call_fd = config->call_fd;
	ring->slots = calloc(config->slot_count, sizeof(*ring->slots));
	ring->posted_bytes = calloc(config->slot_count, sizeof(*ring->posted_bytes));
	ring->order = calloc(config->size, sizeof(*ring->order));
	ring->free_slots = calloc(config->size, sizeof(*ring->free_slots));
	if (!ring->slots || !ring->posted_bytes || !ring->order || !ring->free_slots)
		return ENOMEM;
	memcpy(ring->slots, config->slots, config->slot_count * sizeof(*ring->slots));
	for (uint32_t slot = 0; slot < config->slot_count; slot++)
		ring_free_push(ring, slot);
	ring_disable_calls(ring);
	return 0;
}

void ring_free(struct ring *ring)
{
	free(ring->slots);
	free(ring->posted_bytes);
	free(ring->order);
	free(ring->free_slots);
}

/*
 * Descriptor number part of a slot's buffer: the whole, or the header alone and then equal pieces of the
 * rest, so that header and data stand in descriptors of their own (2.7.4.1).
 */
static struct desc make_desc(const struct ring *ring, uint32_t slot, uint32_t bytes, uint32_t part)
{
	uint32_t last = ring->segments - 1, offset = 0, length = bytes;
	uint32_t base = ring->flags & VM1_RING_INDIRECT ? 0 : slot * ring->segments;
	struct desc desc;

	if (last) {
		uint32_t piece = (bytes - ring->header_bytes) / last;

		offset = part ? ring->header_bytes + (part - 1) * piece : 0;
		length = !part ? ring->header_bytes : part == last ? bytes - offset : piece;
	}
	desc.address = ring->slots[slot].bus + VM1_HEADROOM - ring->header_bytes + offset;
	desc.length = length;
	desc.flags = ring->flags & VM1_RING_RECEIVE ? DESC_F_WRITE : 0;
	desc.next = 0;
	if (part < last) {
		desc.flags |= DESC_F_NEXT;
		desc.next = (uint16_t)(base + part + 1);
	}
	return desc;
}

/* The one descriptor in the ring that stands for an indirect table (2.7.5.3). */
static struct desc make_indirect(const struct ring *ring, uint32_t slot)
{
	uint32_t bytes = ring->segments * (uint32_t)sizeof(struct desc);

	return (struct desc){ .address = ring->indirect_bus + (uint64_t)slot * bytes,
			      .length = bytes, .flags = DESC_F_INDIRECT };
}

static struct desc *table_of(const struct ring *ring, uint32_t slot)
{
	if (ring->flags & VM1_RING_INDIRECT)
		return (struct desc *)(uintptr_t)ring->indirect_host + slot * ring->segments;
	return ring->desc + slot * ring->segments;
}

void ring_describe(struct ring *ring, uint32_t slot, uint32_t bytes)
{
	struct desc *table = table_of(ring, slot);

	for (uint32_t part = 0; part < ring->segments; part++)
		table[part] = make_desc(ring, slot, bytes, part);
	if (ring->flags & VM1_RING_INDIRECT)
		ring->desc[slot] = make_indirect(ring, slot);
}

bool ring_desc_intact(const struct ring *ring, uint32_t slot, uint32_t bytes)
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

void ring_kick(struct ring *ring)
{
	const uint64_t one = 1;

	/* EAGAIN means that the counter is full: the device has a kick to see as it is. */
	if (write(ring->kick_fd, &one, sizeof(one)) == (ssize_t)sizeof(one))
		ring->stats->kicks++;
}

void ring_show(struct ring *ring)
{
	/* Pairs with the device's acquire of avail.idx: descriptors and entries come first. */
	atomic_store_explicit(&ring->avail->index, ring->avail_index, memory_order_release);
	ring->published = ring->avail_index;
}

void ring_publish(struct ring *ring)
{
	uint16_t old = ring->published, new = ring->avail_index;
	bool wanted;

	if (new == old)
		return;
	ring_show(ring);
	/* 2.7.13.4.1: the index must be visible before the device's wish is read. */
	atomic_thread_fence(memory_order_seq_cst);
	if (ring->flags & VM1_RING_EVENT_IDX)
		wanted = (uint16_t)(new - avail_event(ring) - 1) < (uint16_t)(new - old);
	else
		wanted = !(atomic_load_explicit(&ring->used->flags, memory_order_relaxed) &
			   USED_F_NO_NOTIFY);
	if (wanted)
		ring_kick(ring);
}

void ring_disable_calls(struct ring *ring)
{
	ring->event = (uint16_t)(ring->used_index - 1);
	if (ring->flags & VM1_RING_EVENT_IDX)
		atomic_store_explicit(used_event(ring), ring->event, memory_order_relaxed);
	else
		atomic_store_explicit(&ring->avail->flags, AVAIL_F_NO_INTERRUPT,
				      memory_order_relaxed);
}

bool ring_enable_calls(struct ring *ring)
{
	ring->event = ring->used_index;
	if (ring->flags & VM1_RING_EVENT_IDX)
		atomic_store_explicit(used_event(ring), ring->event, memory_order_relaxed);
	else
		atomic_store_explicit(&ring->avail->flags, 0, memory_order_relaxed);
	/* 2.7.7.1: the wish must be visible before used.idx is looked at for the last time. */
	atomic_thread_fence(memory_order_seq_cst);
	return ring_look(ring) != 0;
}

uint32_t ring_look(struct ring *ring)
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
		ring_disable_calls(ring);
	return ready;
}

bool ring_finds_batch(struct ring *ring, uint32_t slot, uint32_t bytes)
{
	uint32_t ready = (uint16_t)(ring->used_seen - ring->used_index);

	for (uint32_t ahead = 1; ahead < ready; ahead++) {
		if (ring->order[(ring->used_index + ahead) & ring->mask] != slot)
			continue;
		ring->batch_left = ahead + 1;
		ring->batch_bytes = bytes;
		return true;
	}
	ring->stats->out_of_order++;
	return false;
}
