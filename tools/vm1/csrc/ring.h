/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver's side of a ring, of either layout: split.h (2.7) or packed.h (2.8).
 *
 * Everything the driver wrote it also keeps privately, and reads only there; what the device wrote is
 * read once and judged. A buffer is named by its slot. Indices count buffers, modulo 2^16.
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

struct desc;
struct avail_ring;
struct used_ring;
struct packed_desc;
union packed_event;

struct ring {
	union {
		struct desc *desc;
		struct packed_desc *packed_desc;
	};
	union { /* the driver area: 2.6 */
		struct avail_ring *avail;
		union packed_event *driver_event;
	};
	union { /* the device area */
		struct used_ring *used;
		union packed_event *device_event;
	};
	struct vm1_stats *stats;
	struct vm1_slot *slots;
	uint32_t *posted_bytes; /* by slot: what is described, header included; 0: not in flight */
	uint16_t *order;        /* by avail index & mask: the slot made available there */
	uint16_t *free_slots;   /* a first-in first-out of free_count from free_head */
	uint32_t free_head, free_count;
	uint32_t size, slot_count;
	uint32_t mask;          /* of order and free_slots: not less than size - 1 */
	uint32_t segments;      /* descriptors of one buffer */
	uint32_t chain;         /* those of them in the ring itself: 1 with an indirect table */
	uint32_t chain_shift;   /* its logarithm; 32 where it has none */
	uint32_t header_bytes, capacity, flags;
	uint32_t batch_left;    /* IN_ORDER: buffers still covered by what was last read (2.7.9, 2.8.9) */
	uint32_t batch_bytes;   /* its length, which belongs to its last buffer */
	uint16_t avail_index, published, used_index;
	uint16_t used_seen;     /* split: used.idx as last believed */
	uint16_t event;         /* split: used_event as last written */
	bool packed;
	bool simple;            /* one descriptor a buffer, in the ring */
	uint16_t merging;       /* replay: buffers to come of the frame at hand: 5.1.6.4 */
	bool broken;            /* what the device says of its progress cannot be trusted any more */
	bool asleep;            /* verify: a call was asked for, and is waited for: sleep.h */
	uint16_t write_flag;    /* DESC_F_WRITE in a receive ring */
	/* packed: where the next descriptor is made available, and found used; and its flags of this lap */
	uint32_t avail_position, used_position;
	uint16_t avail_flags, used_flags;
	uint32_t first_position;    /* of the first descriptor not yet published, */
	uint64_t first_word;        /* which is held back until the others stand */
	struct packed_desc *shadow; /* by position: the descriptors as written, where buffers have several */
	uint64_t indirect_host, indirect_bus;
	int kick_fd, call_fd;
};

/* A used buffer. */
struct used_chain {
	uint32_t slot;
	uint32_t position; /* packed: of its first descriptor */
	uint32_t posted;   /* bytes it was offered with */
	uint32_t written;  /* bytes the device says it wrote, bounded by what it may */
	bool intact;       /* false: the length was impossible */
};

int ring_init(struct ring *ring, const struct vm1_ring_config *config, uint32_t header_bytes,
	      struct vm1_stats *stats);
void ring_free(struct ring *ring);

/* One piece of a buffer, as a descriptor says it; flags without NEXT. */
struct piece {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
};

/*
 * Piece number part of bytes (header included) in a slot: the whole, or the header alone and then equal
 * pieces of the rest, so that header and data stand in descriptors of their own (2.7.4.1).
 */
struct piece ring_piece(const struct ring *ring, uint32_t slot, uint32_t bytes, uint32_t part);
/* The one piece that stands for the slot's indirect table (2.7.5.3, 2.8.7). */
struct piece ring_table_piece(const struct ring *ring, uint32_t slot);
/* Whether the device left the descriptors of a buffer just taken as they were written. */
bool ring_desc_intact(const struct ring *ring, const struct used_chain *taken);
/* Makes visible what was posted, before there is a device to kick. */
void ring_show(struct ring *ring);
/* Makes visible what was posted, and kicks if the device asks for it. */
void ring_publish(struct ring *ring);
void ring_kick(struct ring *ring);
/* Asks for a call at the next used buffer; true if one came meanwhile, so that sleeping would be wrong. */
bool ring_enable_calls(struct ring *ring);
void ring_disable_calls(struct ring *ring);
/* Whether a used slot that is not the next ends a batch, of ready buffers at most; if not, that is counted. */
bool ring_finds_batch(struct ring *ring, uint32_t slot, uint32_t bytes, uint32_t ready);
/* What SET_VRING_BASE gives for a device that goes on behind what is used. Takes nothing. */
uint32_t ring_base(struct ring *ring);

static inline uint8_t *ring_header(const struct ring *ring, uint32_t slot)
{
	return (uint8_t *)(uintptr_t)ring->slots[slot].host + VM1_HEADROOM - ring->header_bytes;
}

static inline uint8_t *ring_frame(const struct ring *ring, uint32_t slot)
{
	return (uint8_t *)(uintptr_t)ring->slots[slot].host + VM1_HEADROOM;
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

#include "packed.h"
#include "split.h"

/* Describes bytes (header included) in the slot and makes them available; not before ring_publish(). */
static inline void ring_post(struct ring *ring, uint32_t slot, uint32_t bytes)
{
	if (ring->packed)
		packed_post(ring, slot, bytes);
	else
		split_post(ring, slot, bytes);
	ring->order[ring->avail_index & ring->mask] = (uint16_t)slot;
	ring->posted_bytes[slot] = bytes;
	ring->avail_index++;
}

/* Whether ring_take() may take something now. */
static inline bool ring_look(struct ring *ring)
{
	return ring->packed ? packed_look(ring) : split_look(ring) != 0;
}

/* Takes the oldest used buffer (split: that ring_look() saw); false when there is none left. */
static inline bool ring_take(struct ring *ring, struct used_chain *taken)
{
	uint32_t bytes, limit;
	bool skipped;

	for (;;) {
		if (!(ring->packed ? packed_next(ring, taken, &bytes, &skipped) :
				     split_next(ring, taken, &bytes, &skipped)))
			return false;
		taken->posted = ring->posted_bytes[taken->slot];
		if (taken->posted)
			break;
		ring->stats->duplicate_id++;
	}
	limit = ring->write_flag ? taken->posted : 0;
	/* 2.7.9, 2.8.9: a buffer skipped in a batch counts as written completely. */
	taken->intact = skipped || bytes <= limit;
	taken->written = !skipped && bytes < limit ? bytes : limit;
	ring->stats->bad_length += !taken->intact;
	ring->posted_bytes[taken->slot] = 0;
	return true;
}

#endif
