/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A packed ring (2.8): descriptors stand in the ring in the order in which they are made available, and the
 * device writes used ones over them. The buffer id is the slot. Included by ring.h alone.
 */
#ifndef VM1_PACKED_H
#define VM1_PACKED_H

#define PACKED_F_AVAIL (1u << 7) /* 2.8.1 */
#define PACKED_F_USED (1u << 15)
#define PACKED_F_BOTH (PACKED_F_AVAIL | PACKED_F_USED)
#define PACKED_WRAP (1u << 15)   /* in positions as events and vhost-user tell them */

/* 2.8.13 */
struct packed_desc {
	uint64_t address;
	_Atomic uint64_t word; /* length, id << 32, flags << 48: written at once */
};

/* 2.8.14: bits 0-14 the descriptor, 15 its wrap counter, 16-17 the flags */
union packed_event {
	_Atomic uint32_t word;
};

#define PACKED_EVENT_ENABLE (0u << 16)
#define PACKED_EVENT_DISABLE (1u << 16)
#define PACKED_EVENT_DESC (2u << 16)

int packed_init(struct ring *ring);
/* Writes the descriptors of bytes in a slot with several, or with an indirect table. */
void packed_describe(struct ring *ring, uint32_t slot, uint32_t bytes);
bool packed_desc_intact(const struct ring *ring, const struct used_chain *taken);
void packed_show(struct ring *ring);
bool packed_wants_kick(const struct ring *ring, uint16_t old);
void packed_set_calls(struct ring *ring, bool wanted);
uint32_t packed_base(struct ring *ring);

static inline uint64_t packed_word(uint32_t length, uint32_t slot, uint32_t flags)
{
	return length | (uint64_t)slot << 32 | (uint64_t)flags << 48;
}

/*
 * Writes the next descriptor. The first that was not published yet is held back: without it the device
 * finds none of them, so that all become available at once (2.8.6, 2.8.21.1).
 */
static inline void packed_put(struct ring *ring, uint64_t address, uint64_t word, bool first)
{
	uint32_t position = ring->avail_position;
	struct packed_desc *desc = &ring->packed_desc[position];

	desc->address = address;
	if (first) {
		ring->first_position = position;
		ring->first_word = word;
	} else {
		atomic_store_explicit(&desc->word, word, memory_order_relaxed);
	}
	if (++position == ring->size) {
		position = 0;
		ring->avail_flags ^= PACKED_F_BOTH;
	}
	ring->avail_position = position;
}

static inline void packed_post(struct ring *ring, uint32_t slot, uint32_t bytes)
{
	if (ring->simple)
		packed_put(ring, ring->slots[slot].bus + VM1_HEADROOM - ring->header_bytes,
			   packed_word(bytes, slot, ring->avail_flags | ring->write_flag),
			   ring->avail_index == ring->published);
	else
		packed_describe(ring, slot, bytes);
}

/* 2.8.1: used are those whose two flags both are the wrap counter. */
static inline bool packed_is_used(const struct ring *ring, uint64_t word)
{
	return ((word >> 48) & PACKED_F_BOTH) == ring->used_flags;
}

static inline uint64_t packed_read(const struct ring *ring)
{
	/* Flags and the rest are one word; acquire, because the data came before it. */
	return atomic_load_explicit(&ring->packed_desc[ring->used_position].word,
				    memory_order_acquire);
}

static inline bool packed_look(struct ring *ring)
{
	return !ring->broken && (ring->batch_left || packed_is_used(ring, packed_read(ring)));
}

/* 2.8.9: the device goes on behind all descriptors of the buffer, though it wrote one. */
static inline void packed_skip(struct ring *ring)
{
	ring->used_index++;
	ring->used_position += ring->chain;
	if (ring->used_position >= ring->size) {
		ring->used_position -= ring->size;
		ring->used_flags ^= PACKED_F_BOTH;
	}
}

/* The next used slot, and what is said of it; skipped: within a batch (2.8.9). */
static inline bool packed_next(struct ring *ring, struct used_chain *taken, uint32_t *bytes,
			       bool *skipped)
{
	for (;;) {
		uint32_t flying = (uint16_t)(ring->published - ring->used_index), slot;
		uint64_t word;

		taken->position = ring->used_position;
		*skipped = false;
		if (ring->batch_left) {
			taken->slot = ring->order[ring->used_index & ring->mask];
			*bytes = ring->batch_bytes;
			*skipped = --ring->batch_left != 0;
			packed_skip(ring);
			return true;
		}
		word = packed_read(ring);
		if (ring->broken || !packed_is_used(ring, word))
			return false;
		if (!flying) {
			ring->stats->index_jump++;
			ring->broken = true;
			return false;
		}
		slot = (uint16_t)(word >> 32);
		/* 2.8.5: without WRITE the length means nothing. */
		*bytes = (word >> 48) & DESC_F_WRITE ? (uint32_t)word : 0;
		if (slot >= ring->slot_count) {
			ring->stats->bad_id++;
			packed_skip(ring);
			continue;
		}
		if ((ring->flags & VM1_RING_IN_ORDER) &&
		    slot != ring->order[ring->used_index & ring->mask] &&
		    ring_finds_batch(ring, slot, *bytes, flying))
			continue;
		taken->slot = slot;
		packed_skip(ring);
		return true;
	}
}

#endif
