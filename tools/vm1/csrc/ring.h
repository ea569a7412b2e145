/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver's side of a split ring (2.7).
 *
 * Everything the driver wrote it also keeps privately, and reads only there; what the device wrote is
 * read once and judged. A chain is named by its slot, which always has the same descriptors.
 */
#ifndef VM1_RING_H
#define VM1_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "vm1.h"

#define DESC_F_NEXT 1u
#define DESC_F_WRITE 2u
#define DESC_F_INDIRECT 4u
#define AVAIL_F_NO_INTERRUPT 1u
#define USED_F_NO_NOTIFY 1u

/* 2.7.5 */
struct desc {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
	uint16_t next;
};

/* 2.7.8 */
struct used_element {
	_Atomic uint32_t id;
	_Atomic uint32_t length;
};

/* 2.7.6; used_event follows the entries */
struct avail_ring {
	_Atomic uint16_t flags;
	_Atomic uint16_t index;
	_Atomic uint16_t entries[];
};

/* 2.7.8; avail_event follows the elements */
struct used_ring {
	_Atomic uint16_t flags;
	_Atomic uint16_t index;
	struct used_element elements[];
};

struct ring {
	struct desc *desc;
	struct avail_ring *avail;
	struct used_ring *used;
	struct vm1_stats *stats;
	struct vm1_slot *slots;
	uint32_t *posted_bytes; /* by slot: what is described, header included; 0: not in flight */
	uint16_t *order;        /* by avail index & mask: the slot made available there */
	uint16_t *free_slots;   /* a first-in first-out of free_count from free_head */
	uint32_t free_head, free_count;
	uint32_t size, mask, slot_count;
	uint32_t segments;      /* descriptors of one buffer */
	uint32_t chain;         /* those of them in the ring itself: 1 with an indirect table */
	uint32_t chain_shift;   /* its logarithm; 32 where it has none */
	uint32_t header_bytes, capacity, flags;
	uint32_t batch_left;    /* IN_ORDER: chains still covered by the element last read (2.7.9) */
	uint32_t batch_bytes;   /* that element's length, which belongs to its last chain */
	uint16_t avail_index, published, used_index, used_seen;
	uint16_t event;         /* used_event as last written */
	bool simple;            /* one descriptor a buffer, in the ring */
	bool broken;            /* used.idx cannot be trusted any more */
	uint64_t indirect_host, indirect_bus;
	int kick_fd, call_fd;
};

int ring_init(struct ring *ring, const struct vm1_ring_config *config, uint32_t header_bytes,
	      struct vm1_stats *stats);
void ring_free(struct ring *ring);
/* Descriptors, and the indirect table if there is one, of bytes (header included) in the slot. */
void ring_describe(struct ring *ring, uint32_t slot, uint32_t bytes);
/* Whether the device left the slot's descriptors as ring_describe() wrote them. */
bool ring_desc_intact(const struct ring *ring, uint32_t slot, uint32_t bytes);
/* Makes visible what was posted, before there is a device to kick. */
void ring_show(struct ring *ring);
/* Makes visible what was posted, and kicks if the device asks for it. */
void ring_publish(struct ring *ring);
void ring_kick(struct ring *ring);
/* Asks for a call at the next used chain; true if one came meanwhile, so that sleeping would be wrong. */
bool ring_enable_calls(struct ring *ring);
void ring_disable_calls(struct ring *ring);
/* Reads used.idx; what ring_take() may take now. */
uint32_t ring_look(struct ring *ring);
/* Whether a used slot that is not the next ends a batch of them (2.7.9); if not, that is counted. */
bool ring_finds_batch(struct ring *ring, uint32_t slot, uint32_t bytes);

static inline uint8_t *ring_header(const struct ring *ring, uint32_t slot)
{
	return (uint8_t *)(uintptr_t)ring->slots[slot].host + VM1_HEADROOM - ring->header_bytes;
}

static inline uint8_t *ring_frame(const struct ring *ring, uint32_t slot)
{
	return (uint8_t *)(uintptr_t)ring->slots[slot].host + VM1_HEADROOM;
}

/* Makes the slot's chain, already described, available; not before ring_publish(). */
static inline void ring_offer(struct ring *ring, uint32_t slot, uint32_t bytes)
{
	uint32_t entry = ring->avail_index & ring->mask;

	atomic_store_explicit(&ring->avail->entries[entry], (uint16_t)(slot * ring->chain),
			      memory_order_relaxed);
	ring->order[entry] = (uint16_t)slot;
	ring->posted_bytes[slot] = bytes;
	ring->avail_index++;
}

static inline void ring_post(struct ring *ring, uint32_t slot, uint32_t bytes)
{
	if (ring->simple)
		ring->desc[slot] = (struct desc){
			.address = ring->slots[slot].bus + VM1_HEADROOM - ring->header_bytes,
			.length = bytes,
			.flags = ring->flags & VM1_RING_RECEIVE ? DESC_F_WRITE : 0,
		};
	else
		ring_describe(ring, slot, bytes);
	ring_offer(ring, slot, bytes);
}

static inline uint32_t ring_free_pop(struct ring *ring)
{
	uint32_t slot = ring->free_slots[ring->free_head++ & ring->mask];

	ring->free_count--;
	return slot;
}

static inline void ring_free_push(struct ring *ring, uint32_t slot)
{
	ring->free_slots[(ring->free_head + ring->free_count++) & ring->mask] = (uint16_t)slot;
}

static inline uint32_t ring_flying(const struct ring *ring)
{
	return (uint16_t)(ring->avail_index - ring->used_index);
}

struct used_chain {
	uint32_t slot;
	uint32_t posted;  /* bytes it was offered with */
	uint32_t written; /* bytes the device says it wrote, bounded by what it may */
	bool intact;      /* false: the length was impossible */
};

/* Takes the oldest used chain that ring_look() saw; false when there is none left. */
static inline bool ring_take(struct ring *ring, struct used_chain *taken)
{
	while (ring->used_index != ring->used_seen) {
		uint32_t entry = ring->used_index & ring->mask, bytes, slot, limit;
		bool skipped = false;

		if (ring->batch_left) {
			slot = ring->order[entry];
			bytes = ring->batch_bytes;
			skipped = --ring->batch_left != 0;
		} else {
			struct used_element *element = &ring->used->elements[entry];
			uint32_t id = atomic_load_explicit(&element->id, memory_order_relaxed);

			bytes = atomic_load_explicit(&element->length, memory_order_relaxed);
			slot = ring->chain_shift < 32 ? id >> ring->chain_shift : id / ring->chain;
			if (slot >= ring->slot_count || slot * ring->chain != id) {
				ring->stats->bad_id++;
				ring->used_index++;
				continue;
			}
			if ((ring->flags & VM1_RING_IN_ORDER) && slot != ring->order[entry] &&
			    ring_finds_batch(ring, slot, bytes))
				continue;
		}
		ring->used_index++;
		if (!ring->posted_bytes[slot]) {
			ring->stats->duplicate_id++;
			continue;
		}
		limit = ring->flags & VM1_RING_RECEIVE ? ring->posted_bytes[slot] : 0;
		taken->slot = slot;
		taken->posted = ring->posted_bytes[slot];
		/* 2.7.9: a chain skipped in a batch counts as written completely. */
		taken->intact = skipped || bytes <= limit;
		taken->written = !skipped && bytes < limit ? bytes : limit;
		ring->stats->bad_length += !taken->intact;
		ring->posted_bytes[slot] = 0;
		return true;
	}
	return false;
}

#endif
