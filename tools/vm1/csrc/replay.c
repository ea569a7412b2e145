/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The replay driver: its transmit rings are always full, its receive rings always stocked, so that what is
 * measured is the back-end. touch says how much the driver does for each packet: 0 moves avail.idx (packed:
 * writes the descriptor); 1 writes descriptor, entry, header and 64 bytes of payload anew (or reads them, on
 * receive); 2 the whole payload.
 */
#include <string.h>

#include "engine.h"
#include "plain.h"

#define TURNS_PER_CLOCK 64u
/* What a back-end takes at once as well; a longer turn would look like a standstill. */
#define REPLAY_BURST 32u

/* Keeps the compiler from leaving out reads whose result nobody wants. */
static volatile uint64_t sink;

static uint32_t touched_bytes(const struct vm1 *vm1, uint32_t length)
{
	return vm1->config.touch == 2 || length < TOUCHED ? length : TOUCHED;
}

static void write_payload(const struct vm1 *vm1, struct ring *ring, uint32_t slot, uint32_t length)
{
	uint8_t *frame = ring_frame(ring, slot);
	uint32_t bytes = touched_bytes(vm1, length);
	uint64_t number = ring->avail_index;

	memcpy(frame, vm1->pattern, bytes < TOUCHED ? bytes : TOUCHED);
	memcpy(frame + vm1->number_at, &number, sizeof(number));
	if (bytes > TOUCHED)
		memset(frame + TOUCHED, (int)ring->avail_index, bytes - TOUCHED);
}

static uint64_t read_payload(const struct vm1 *vm1, const struct ring *ring, uint32_t slot,
			     uint32_t written)
{
	const uint8_t *header = ring_header(ring, slot);
	uint32_t bytes = ring->header_bytes + touched_bytes(vm1, written);
	uint64_t all = 0, word;

	if (bytes > written)
		bytes = written;
	for (uint32_t offset = 0; offset + 8 <= bytes; offset += 8) {
		memcpy(&word, header + offset, 8);
		all += word;
	}
	return all;
}

/* touch 0 goes round these entries for ever, so they must repeat: slot_count is a power of two. */
static void repeat_entries(struct ring *ring)
{
	if (ring->packed)
		return;
	for (uint32_t entry = 0; entry < ring->size; entry++) {
		uint32_t slot = entry & (ring->slot_count - 1);

		atomic_store_explicit(&ring->avail->entries[entry],
				      (uint16_t)(slot * ring->chain), memory_order_relaxed);
		ring->order[entry] = (uint16_t)slot;
	}
}

/* Of a TCP segment over IPv4 as long as the frame: all but its sequence numbers is alike in each. */
static void make_segment(struct vm1 *vm1, struct net_header *header)
{
	const uint32_t headers = offload_header_bytes(false);
	const struct offload_shape shape = {
		.pieces = 1, .piece_bytes = vm1->config.size_min - headers};

	offload_seal(vm1->pattern, &shape, header);
	if (vm1->config.leave == VM1_LEAVE_CSUM)
		return;
	header->gso_type = NET_GSO_TCPV4;
	header->gso_size = VM1_SEGMENT;
	header->hdr_len = (uint16_t)headers;
}

/* Of a datagram likewise: all but the beginning of its payload. */
static void make_datagram(struct vm1 *vm1, struct net_header *header)
{
	const bool fragments = vm1->config.leave == VM1_LEAVE_UFO;

	offload_seal_datagram(vm1->pattern, vm1->config.size_min, header);
	header->gso_type = fragments ? NET_GSO_UDP : NET_GSO_UDP_L4;
	header->gso_size = fragments ? VM1_FRAGMENT : VM1_SEGMENT;
	header->hdr_len = DATAGRAM_HEADER_BYTES;
	vm1->number_at = DATAGRAM_HEADER_BYTES;
}

static void make_offload(struct vm1 *vm1)
{
	struct net_header header;

	(vm1->config.leave < VM1_LEAVE_USO ? make_segment : make_datagram)(vm1, &header);
	memcpy(vm1->header, &header, sizeof(header));
}

static void make_pattern(struct vm1 *vm1)
{
	const uint16_t type = FRAME_ETHERTYPE;

	vm1->number_at = NUMBER_AT;
	memset(vm1->pattern, CANARY, sizeof(vm1->pattern));
	memcpy(vm1->pattern, vm1->config.destination, 6);
	memcpy(vm1->pattern + 6, vm1->config.source, 6);
	memcpy(vm1->pattern + 12, &type, sizeof(type));
	if (vm1->config.leave != VM1_LEAVE_NOTHING)
		make_offload(vm1);
}

static void post_frame(const struct vm1 *vm1, struct ring *ring, uint32_t slot, uint32_t length)
{
	memcpy(ring_header(ring, slot), vm1->header, ring->header_bytes);
	ring_post(ring, slot, ring->header_bytes + length);
}

void replay_stock(struct vm1 *vm1)
{
	make_pattern(vm1);
	for (uint32_t index = 0; index < vm1->config.pairs; index++) {
		struct pair *pair = &vm1->pairs[index];
		struct ring *ring = &pair->transmit;

		if (!vm1->config.touch) {
			repeat_entries(ring);
			repeat_entries(&pair->receive);
		}
		while ((vm1->config.directions & VM1_TRANSMIT) && ring->free_count) {
			uint32_t slot = ring_free_pop(ring), length = draw_size(vm1);

			write_payload(vm1, ring, slot, length);
			post_frame(vm1, ring, slot, length);
		}
		ring_show(ring);
	}
}

/* A packed ring's descriptors the device has written over, so that they are always written anew. */
static uint32_t turn_packed_untouched(struct ring *ring)
{
	struct used_chain chain;
	uint32_t packets = 0;

	while (packets < REPLAY_BURST && ring_take(ring, &chain)) {
		ring_post(ring, chain.slot, chain.posted);
		packets++;
	}
	ring_publish(ring);
	return packets;
}

/* touch 0: everything is as it was; only the indices move. */
static uint32_t turn_untouched(struct ring *ring)
{
	uint32_t ready;

	if (ring->packed)
		return turn_packed_untouched(ring);
	ready = split_look(ring);
	ring->used_index = ring->used_seen;
	ring->avail_index = (uint16_t)(ring->avail_index + ready);
	ring_publish(ring);
	return ready;
}

static bool transmit_one(struct vm1 *vm1, struct ring *ring)
{
	struct used_chain chain;
	uint32_t length;

	if (!ring_take(ring, &chain))
		return false;
	length = draw_size(vm1);
	vm1->stats->sent_bytes += chain.posted - ring->header_bytes;
	write_payload(vm1, ring, chain.slot, length);
	post_frame(vm1, ring, chain.slot, length);
	return true;
}

/* *partial: one more of the buffers that do not end a frame. */
static bool receive_one(struct vm1 *vm1, struct ring *ring, uint32_t *partial)
{
	struct used_chain chain;
	struct net_header header;

	if (!ring_take(ring, &chain))
		return false;
	sink = read_payload(vm1, ring, chain.slot, chain.written);
	vm1->stats->received_bytes += chain.written;
	if (ring->merging) {
		ring->merging--;
	} else {
		memcpy(&header, ring_header(ring, chain.slot), sizeof(header));
		if (vm1->config.mergeable && header.num_buffers)
			ring->merging = header.num_buffers - 1;
		vm1->stats->received_bytes -= chain.written < ring->header_bytes ?
						      chain.written :
						      ring->header_bytes;
	}
	*partial += ring->merging != 0;
	ring_post(ring, chain.slot, ring->capacity);
	return true;
}

/* What is first looked up in a batch (2.7.9, 2.8.9) may be plain from there on. */
static uint32_t turn_touched(struct vm1 *vm1, struct ring *ring, bool receive)
{
	bool plain = plain_applies(vm1, ring);
	uint64_t read = 0, *bytes = receive ? &vm1->stats->received_bytes : &vm1->stats->sent_bytes;
	uint32_t packets = 0, partial = 0;

	if (!ring_look(ring))
		return 0;
	while (packets < REPLAY_BURST) {
		if (plain)
			packets += plain_turn(vm1, ring, receive, REPLAY_BURST - packets, bytes,
					      &read);
		if (packets == REPLAY_BURST ||
		    !(receive ? receive_one(vm1, ring, &partial) : transmit_one(vm1, ring)))
			break;
		packets++;
	}
	ring_publish(ring);
	if (receive)
		sink = read;
	return packets - partial;
}

static uint32_t turn_transmit(struct vm1 *vm1, struct ring *ring)
{
	uint32_t packets;

	if (vm1->config.touch) {
		packets = turn_touched(vm1, ring, false);
	} else {
		packets = turn_untouched(ring);
		vm1->stats->sent_bytes += (uint64_t)packets * vm1->config.size_min;
	}
	vm1->stats->sent += packets;
	return packets;
}

static uint32_t turn_receive(struct vm1 *vm1, struct ring *ring)
{
	uint32_t packets = vm1->config.touch ? turn_touched(vm1, ring, true) : turn_untouched(ring);

	vm1->stats->received += packets;
	return packets;
}

static void turn(struct vm1 *vm1, uint32_t *sent, uint32_t *received)
{
	for (uint32_t index = 0; index < vm1->config.pairs; index++) {
		struct pair *pair = &vm1->pairs[index];

		if (vm1->config.directions & VM1_TRANSMIT)
			*sent += turn_transmit(vm1, &pair->transmit);
		if (vm1->config.directions & VM1_RECEIVE)
			*received += turn_receive(vm1, &pair->receive);
	}
}

uint32_t replay_run(struct vm1 *vm1, uint64_t deadline_ns)
{
	slicer_begin(vm1->slicer, tsc());
	do {
		for (uint32_t turns = 0; turns < TURNS_PER_CLOCK; turns++) {
			uint32_t sent = 0, received = 0;

			turn(vm1, &sent, &received);
			if (vm1->second)
				turn(vm1->second, &sent, &received);
			slicer_note(vm1->slicer, tsc(), sent, received);
		}
	} while (now_ns() < deadline_ns);
	return VM1_BUDGET;
}

uint32_t vm1_slices(const struct vm1 *vm1, struct vm1_slice *slices, uint32_t capacity)
{
	uint32_t count = vm1->slicer->count < capacity ? vm1->slicer->count : capacity;

	memcpy(slices, vm1->slicer->slices, count * sizeof(*slices));
	return count;
}

void vm1_join(struct vm1 *vm1, struct vm1 *second)
{
	vm1->second = second;
}
