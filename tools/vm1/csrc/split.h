/* SPDX-License-Identifier: BSD-3-Clause */
/* A split ring (2.7): a slot always has the same descriptors. Included by ring.h alone. */
#ifndef VM1_SPLIT_H
#define VM1_SPLIT_H

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

/* Descriptors, and the indirect table if there is one, of bytes in the slot. */
void split_describe(struct ring *ring, uint32_t slot, uint32_t bytes);
bool split_desc_intact(const struct ring *ring, uint32_t slot, uint32_t bytes);
void split_show(struct ring *ring);
/* Whether the device wants a kick for what was shown since the index old. */
bool split_wants_kick(const struct ring *ring, uint16_t old);
void split_set_calls(struct ring *ring, bool wanted);
/* Reads used.idx; how many elements split_next() may take now. */
uint32_t split_look(struct ring *ring);

static inline void split_post(struct ring *ring, uint32_t slot, uint32_t bytes)
{
	if (ring->simple)
		ring->desc[slot] = (struct desc){
			.address = ring->slots[slot].bus + VM1_HEADROOM - ring->header_bytes,
			.length = bytes,
			.flags = ring->write_flag,
		};
	else
		split_describe(ring, slot, bytes);
	atomic_store_explicit(&ring->avail->entries[ring->avail_index & ring->mask],
			      (uint16_t)(slot * ring->chain), memory_order_relaxed);
}

/* The next slot that split_look() saw used, and what is said of it; skipped: within a batch (2.7.9). */
static inline bool split_next(struct ring *ring, struct used_chain *taken, uint32_t *bytes,
			      bool *skipped)
{
	while (ring->used_index != ring->used_seen) {
		uint32_t entry = ring->used_index & ring->mask, slot, id;
		struct used_element *element = &ring->used->elements[entry];

		*skipped = false;
		if (ring->batch_left) {
			taken->slot = ring->order[entry];
			*bytes = ring->batch_bytes;
			*skipped = --ring->batch_left != 0;
			ring->used_index++;
			return true;
		}
		id = atomic_load_explicit(&element->id, memory_order_relaxed);
		*bytes = atomic_load_explicit(&element->length, memory_order_relaxed);
		slot = ring->chain_shift < 32 ? id >> ring->chain_shift : id / ring->chain;
		if (slot >= ring->slot_count || slot * ring->chain != id) {
			ring->stats->bad_id++;
			ring->used_index++;
			continue;
		}
		if ((ring->flags & VM1_RING_IN_ORDER) && slot != ring->order[entry] &&
		    ring_finds_batch(ring, slot, *bytes,
				     (uint16_t)(ring->used_seen - ring->used_index)))
			continue;
		taken->slot = slot;
		ring->used_index++;
		return true;
	}
	return false;
}

#endif
