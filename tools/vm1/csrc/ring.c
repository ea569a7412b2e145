/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ring.h"

static bool geometry_is_sane(const struct vm1_ring_config *config)
{
	bool packed = config->flags & VM1_RING_PACKED;

	/* 2.7, 2.8.10.1: only a split ring's size is a power of two. */
	if (!config->size || config->size > 32768 ||
	    (!packed && (config->size & (config->size - 1))))
		return false;
	if (!config->chain || config->chain > VM1_CHAIN_MAX || !config->slot_count)
		return false;
	if (config->flags & VM1_RING_INDIRECT)
		return config->indirect_host && config->slot_count <= config->size;
	return (uint64_t)config->slot_count * config->chain <= config->size;
}

static uint32_t power_of_two(uint32_t least)
{
	uint32_t power = 1;

	while (power < least)
		power *= 2;
	return power;
}

int ring_init(struct ring *ring, const struct vm1_ring_config *config, uint32_t header_bytes,
	      struct vm1_stats *stats)
{
	if (!geometry_is_sane(config))
		return EINVAL;
	ring->packed = config->flags & VM1_RING_PACKED;
	ring->desc = (struct desc *)(uintptr_t)config->desc;
	ring->avail = (struct avail_ring *)(uintptr_t)config->avail;
	ring->used = (struct used_ring *)(uintptr_t)config->used;
	ring->indirect_host = config->indirect_host;
	ring->indirect_bus = config->indirect_bus;
	ring->stats = stats;
	ring->size = config->size;
	ring->mask = power_of_two(config->size) - 1;
	ring->slot_count = config->slot_count;
	ring->flags = config->flags;
	ring->write_flag = config->flags & VM1_RING_RECEIVE ? DESC_F_WRITE : 0;
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
	ring->order = calloc(ring->mask + 1, sizeof(*ring->order));
	ring->free_slots = calloc(ring->mask + 1, sizeof(*ring->free_slots));
	if (!ring->slots || !ring->posted_bytes || !ring->order || !ring->free_slots)
		return ENOMEM;
	if (ring->packed && packed_init(ring))
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
	free(ring->shadow);
}

struct piece ring_piece(const struct ring *ring, uint32_t slot, uint32_t bytes, uint32_t part)
{
	uint32_t last = ring->segments - 1, offset = 0, length = bytes;

	if (last) {
		uint32_t piece = (bytes - ring->header_bytes) / last;

		offset = part ? ring->header_bytes + (part - 1) * piece : 0;
		length = !part ? ring->header_bytes : part == last ? bytes - offset : piece;
	}
	return (struct piece){
		.address = ring->slots[slot].bus + VM1_HEADROOM - ring->header_bytes + offset,
		.length = length,
		.flags = ring->write_flag,
	};
}

struct piece ring_table_piece(const struct ring *ring, uint32_t slot)
{
	uint32_t bytes = ring->segments * 16;

	return (struct piece){ .address = ring->indirect_bus + (uint64_t)slot * bytes,
			       .length = bytes, .flags = DESC_F_INDIRECT };
}

bool ring_desc_intact(const struct ring *ring, const struct used_chain *taken)
{
	if (ring->packed)
		return packed_desc_intact(ring, taken);
	return split_desc_intact(ring, taken->slot, taken->posted);
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
	if (ring->packed)
		packed_show(ring);
	else
		split_show(ring);
	ring->published = ring->avail_index;
}

void ring_publish(struct ring *ring)
{
	uint16_t old = ring->published;

	if (ring->avail_index == old)
		return;
	ring_show(ring);
	/* 2.7.13.4.1, 2.8.21.3.1: what is available must be visible before the device's wish is read. */
	atomic_thread_fence(memory_order_seq_cst);
	if (ring->packed ? packed_wants_kick(ring, old) : split_wants_kick(ring, old))
		ring_kick(ring);
}

static void set_calls(struct ring *ring, bool wanted)
{
	if (ring->packed)
		packed_set_calls(ring, wanted);
	else
		split_set_calls(ring, wanted);
}

void ring_disable_calls(struct ring *ring)
{
	set_calls(ring, false);
}

bool ring_enable_calls(struct ring *ring)
{
	set_calls(ring, true);
	/* 2.7.7.1, 2.8.22: the wish must be visible before the ring is looked at for the last time. */
	atomic_thread_fence(memory_order_seq_cst);
	return ring_look(ring);
}

uint32_t ring_base(struct ring *ring)
{
	if (ring->packed)
		return packed_base(ring);
	return (uint16_t)(ring->used_index + split_look(ring));
}

bool ring_finds_batch(struct ring *ring, uint32_t slot, uint32_t bytes, uint32_t ready)
{
	for (uint32_t ahead = 1; ahead < ready; ahead++) {
		if (ring->order[(uint16_t)(ring->used_index + ahead) & ring->mask] != slot)
			continue;
		ring->batch_left = ahead + 1;
		ring->batch_bytes = bytes;
		return true;
	}
	ring->stats->out_of_order++;
	return false;
}
