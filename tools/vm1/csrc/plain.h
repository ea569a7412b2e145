/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The replay's short way: buffers of one descriptor that hold a frame, frames of one size, touch 1, a header of 12 bytes, and a
 * device that goes by the order. Whatever is otherwise it leaves to ring_take(), which judges it.
 *
 * It keeps everything that changes in registers: a store to VM1's memory could be one to struct ring, as
 * far as the compiler knows.
 */
#ifndef VM1_PLAIN_H
#define VM1_PLAIN_H

#include <string.h>

#include "engine.h"

#define PLAIN_HEADER 12u
#define TOUCHED 64u
/* Of the bytes that are other ones each time: TCP's sequence and acknowledgement numbers. A datagram's are its first. */
#define NUMBER_AT 38u

static inline bool plain_applies(const struct vm1 *vm1, const struct ring *ring)
{
	const struct vm1_config *config = &vm1->config;

	return ring->simple && ring->header_bytes == PLAIN_HEADER && config->touch == 1 &&
	       !config->imix && config->size_min == config->size_max &&
	       config->size_min >= TOUCHED && ring->capacity >= PLAIN_HEADER + config->size_max;
}

/* What of a ring changes during a turn. */
struct plain {
	uint32_t avail_position, used_position, batch_left;
	uint16_t avail_index, used_index, avail_flags, used_flags;
	uint64_t first_word;
	uint32_t first_position;
	bool nothing_posted;
};

static inline struct plain plain_begin(const struct ring *ring)
{
	return (struct plain){
		.avail_position = ring->avail_position,
		.used_position = ring->used_position,
		.batch_left = ring->batch_left,
		.avail_index = ring->avail_index,
		.used_index = ring->used_index,
		.avail_flags = ring->avail_flags,
		.used_flags = ring->used_flags,
		.nothing_posted = ring->avail_index == ring->published,
		.first_word = ring->first_word,
		.first_position = ring->first_position,
	};
}

static inline void plain_end(struct ring *ring, const struct plain *plain)
{
	ring->avail_position = plain->avail_position;
	ring->used_position = plain->used_position;
	ring->batch_left = plain->batch_left;
	ring->avail_index = plain->avail_index;
	ring->used_index = plain->used_index;
	ring->avail_flags = plain->avail_flags;
	ring->used_flags = plain->used_flags;
	ring->first_word = plain->first_word;
	ring->first_position = plain->first_position;
}

/* Whether the slot that is next by order is used, with a length that can be; *written: that length. */
static inline bool plain_next(const struct ring *ring, const struct plain *plain, bool packed,
			      uint32_t slot, uint32_t limit, uint32_t *written)
{
	if (packed) {
		uint64_t word = atomic_load_explicit(
			&ring->packed_desc[plain->used_position].word, memory_order_acquire);

		*written = (word >> 48) & DESC_F_WRITE ? (uint32_t)word : 0;
		return ((word >> 48) & PACKED_F_BOTH) == plain->used_flags &&
		       (uint16_t)(word >> 32) == slot && *written <= limit;
	}
	if (plain->used_index == ring->used_seen)
		return false;
	const struct used_element *element = &ring->used->elements[plain->used_index & ring->mask];

	*written = atomic_load_explicit(&element->length, memory_order_relaxed);
	return atomic_load_explicit(&element->id, memory_order_relaxed) == slot && *written <= limit;
}

static inline void plain_post(const struct ring *ring, struct plain *plain, bool packed, uint32_t slot,
			      uint64_t bus, uint32_t bytes, uint16_t flags)
{
	uint64_t address = bus + VM1_HEADROOM - PLAIN_HEADER;
	uint32_t position = plain->avail_position;

	ring->order[plain->avail_index & ring->mask] = (uint16_t)slot;
	if (!packed) {
		ring->desc[slot] = (struct desc){
			.address = address,
			.length = bytes,
			.flags = flags,
		};
		atomic_store_explicit(&ring->avail->entries[plain->avail_index & ring->mask],
				      (uint16_t)slot, memory_order_relaxed);
		plain->avail_index++;
		return;
	}
	plain->avail_index++;
	ring->packed_desc[position].address = address;
	if (plain->nothing_posted) {
		plain->nothing_posted = false;
		plain->first_position = position;
		plain->first_word = packed_word(bytes, slot, plain->avail_flags | flags);
	} else {
		atomic_store_explicit(&ring->packed_desc[position].word,
				      packed_word(bytes, slot, plain->avail_flags | flags),
				      memory_order_relaxed);
	}
	if (++position == ring->size) {
		position = 0;
		plain->avail_flags ^= PACKED_F_BOTH;
	}
	plain->avail_position = position;
}

/* Header, and 64 bytes that are other ones each time. */
static inline void plain_write(const struct vm1 *vm1, uint8_t *frame, uint64_t number)
{
	memcpy(frame - PLAIN_HEADER, vm1->header, PLAIN_HEADER);
	memcpy(frame, vm1->pattern, TOUCHED);
	memcpy(frame + vm1->number_at, &number, sizeof(number));
}

typedef uint64_t lanes __attribute__((vector_size(16), aligned(1)));

/* Header, and 64 bytes. */
static inline lanes plain_read(const uint8_t *frame)
{
	const lanes *payload = (const lanes *)frame;
	uint64_t header;

	memcpy(&header, frame - PLAIN_HEADER, sizeof(header));
	return payload[0] + payload[1] + payload[2] + payload[3] + (lanes){ header };
}

static inline __attribute__((always_inline)) uint32_t
plain_run(const struct vm1 *vm1, struct ring *ring, const bool packed, const bool receive,
	   uint32_t most, uint64_t *bytes, uint64_t *read)
{
	/* A copy that nobody else can reach. */
	const struct ring view = *ring;
	struct plain plain = plain_begin(&view);
	const uint16_t flags = receive ? DESC_F_WRITE : 0;
	const uint32_t posted = receive ? view.capacity : PLAIN_HEADER + vm1->config.size_min;
	uint32_t packets = 0, written = 0;
	uint64_t all_bytes = 0;
	lanes all_read = { 0 };

	for (; packets < most && plain.used_index != view.published; packets++) {
		uint32_t slot = view.order[plain.used_index & view.mask];
		uint8_t *frame = (uint8_t *)(uintptr_t)view.slots[slot].host + VM1_HEADROOM;

		if (!receive && plain.batch_left)
			plain.batch_left--;
		else if (plain.batch_left ||
			 !plain_next(&view, &plain, packed, slot, receive ? posted : 0, &written))
			break;
		if (receive && written < PLAIN_HEADER + TOUCHED)
			break;
		plain.used_index++;
		if (packed && ++plain.used_position == view.size) {
			plain.used_position = 0;
			plain.used_flags ^= PACKED_F_BOTH;
		}
		if (receive) {
			all_read += plain_read(frame);
			all_bytes += written - PLAIN_HEADER;
		} else {
			plain_write(vm1, frame, plain.avail_index);
			all_bytes += posted - PLAIN_HEADER;
		}
		plain_post(&view, &plain, packed, slot, view.slots[slot].bus, posted, flags);
	}
	plain_end(ring, &plain);
	*bytes += all_bytes;
	*read += all_read[0] + all_read[1];
	return packets;
}

/* Takes buffers and posts them again, at most `most`; how many. Adds the frames' bytes, and what was read. */
static inline uint32_t plain_turn(const struct vm1 *vm1, struct ring *ring, bool receive,
				  uint32_t most, uint64_t *bytes, uint64_t *read)
{
	if (ring->packed)
		return receive ? plain_run(vm1, ring, true, true, most, bytes, read) :
				 plain_run(vm1, ring, true, false, most, bytes, read);
	return receive ? plain_run(vm1, ring, false, true, most, bytes, read) :
			 plain_run(vm1, ring, false, false, most, bytes, read);
}

#endif
