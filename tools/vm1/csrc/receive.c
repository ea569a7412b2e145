/* SPDX-License-Identifier: BSD-3-Clause */
#include <string.h>

#include "engine.h"

static bool is_canary(const uint8_t *bytes, uint32_t count)
{
	uint64_t different = 0, word;

	for (; count >= 8; count -= 8, bytes += 8) {
		memcpy(&word, bytes, 8);
		different |= word ^ 0xa5a5a5a5a5a5a5a5ull;
	}
	while (count--)
		different |= *bytes++ ^ CANARY;
	return !different;
}

/* Looks for bytes that the device did not own: around the buffer, and behind what it says it wrote. */
static void check_guards(struct vm1 *vm1, struct ring *ring, const struct used_chain *chain)
{
	uint8_t *header = ring_header(ring, chain->slot), *written = header + chain->written;
	uint8_t *end = header + ring->capacity;
	uint32_t before = VM1_HEADROOM - ring->header_bytes, behind = (uint32_t)(end - written);

	if (behind > VM1_GUARD)
		behind = VM1_GUARD;
	if (is_canary(header - before, before) && is_canary(written, behind) &&
	    is_canary(end, VM1_GUARD))
		return;
	vm1->stats->canary++;
	/* The frame itself may still be good. */
	memset(header - before, CANARY, before);
	memset(written, CANARY, (size_t)(end - written) + VM1_GUARD);
}

static void recycle(struct vm1 *vm1, struct ring *ring, uint32_t slot, uint32_t written)
{
	/* What the next frame leaves untouched must again be canary, wherever it ends. */
	if (vm1->config.mode == VM1_VERIFY)
		memset(ring_header(ring, slot), CANARY, written);
	ring_post(ring, slot, ring->capacity);
}

static bool take(struct vm1 *vm1, struct ring *ring, struct used_chain *chain)
{
	if (!ring_take(ring, chain))
		return false;
	if (vm1->config.mode == VM1_VERIFY) {
		check_guards(vm1, ring, chain);
		vm1->stats->desc_written += !ring_desc_intact(ring, chain);
	}
	return true;
}

/* How many buffers the frame is in, by its header, which is copied. */
static uint32_t judge_header(struct vm1 *vm1, const struct ring *ring, uint32_t slot,
			     struct net_header *header)
{
	*header = (struct net_header){ .num_buffers = 1 };
	memcpy(header, ring_header(ring, slot), ring->header_bytes);
	vm1->stats->bad_header += !offload_header_is_allowed(vm1, header);
	vm1->stats->offload_received += header->flags & NET_F_NEEDS_CSUM;
	if (!vm1->config.mergeable) {
		vm1->stats->unset_num_buffers += header->num_buffers != 1;
		return 1;
	}
	vm1->stats->bad_header += !header->num_buffers;
	return header->num_buffers;
}

/* 5.1.6.4: a frame in several buffers, all but the last full, used together. */
static void merge(struct vm1 *vm1, struct ring *ring, const struct used_chain *first,
		  uint32_t buffers, struct received *received)
{
	struct used_chain chain = *first;
	uint32_t length = 0;

	received->frame = vm1->bounce;
	received->slot = NO_SLOT;
	for (uint32_t buffer = 0; buffer < buffers; buffer++) {
		uint32_t skip = buffer ? 0 : ring->header_bytes;

		if (buffer && !take(vm1, ring, &chain)) {
			received->usable = false;
			break;
		}
		if (!chain.written || (buffer + 1 < buffers && chain.written != ring->capacity) ||
		    length + chain.written > VM1_FRAME_MAX + ring->capacity)
			received->usable = false;
		if (received->usable) {
			memcpy(vm1->bounce + length, ring_header(ring, chain.slot) + skip,
			       chain.written - skip);
			length += chain.written - skip;
		}
		recycle(vm1, ring, chain.slot, chain.written);
	}
	received->length = length;
	vm1->stats->broken_merge += !received->usable;
}

bool receive_next(struct vm1 *vm1, struct ring *ring, struct received *received)
{
	struct used_chain chain;
	uint32_t buffers;

	if (!take(vm1, ring, &chain))
		return false;
	received->slot = chain.slot;
	received->frame = ring_frame(ring, chain.slot);
	received->usable = chain.intact;
	received->length = 0;
	if (chain.written <= ring->header_bytes) {
		vm1->stats->bad_length += chain.intact;
		received->usable = false;
		return true;
	}
	received->length = chain.written - ring->header_bytes;
	buffers = judge_header(vm1, ring, chain.slot, &received->header);
	if (buffers > 1)
		merge(vm1, ring, &chain, buffers, received);
	return true;
}

void receive_done(struct vm1 *vm1, struct ring *ring, const struct received *received)
{
	if (received->slot != NO_SLOT)
		recycle(vm1, ring, received->slot, ring->header_bytes + received->length);
}

void receive_stock(struct vm1 *vm1, struct ring *ring)
{
	while (ring->free_count) {
		uint32_t slot = ring_free_pop(ring);

		if (vm1->config.mode == VM1_VERIFY)
			memset((void *)(uintptr_t)ring->slots[slot].host, CANARY,
			       VM1_HEADROOM - ring->header_bytes + ring->capacity + VM1_GUARD);
		ring_post(ring, slot, ring->capacity);
	}
	ring_show(ring);
}
