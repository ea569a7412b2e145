/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sends numbered, checksummed frames and accounts for those that come: its own where the back-end loops them,
 * or another VM1's. In a loop a frame counts as in flight until it is back; against a peer until the peer,
 * in its own frames, says it has it. So a frame that is missing was lost, not crowded out.
 */
#include <sched.h>
#include <string.h>

#include "engine.h"
#include "sleep.h"

#define TURNS_PER_CLOCK 16u
/* Empty turns before the core is offered to others: the back-end may need this one. */
#define TURNS_BEFORE_YIELD 256u

static bool is_loop(const struct vm1_config *config)
{
	return config->stream == config->peer_stream;
}

static bool is_dialogue(const struct vm1_config *config)
{
	return !is_loop(config) && config->directions == (VM1_TRANSMIT | VM1_RECEIVE);
}

static void judge_data(struct vm1 *vm1, struct pair *pair, uint64_t sequence, uint32_t length)
{
	struct vm1_stats *stats = vm1->stats;
	uint64_t highest = pair->sequence->next;

	/* A number we have not given out yet: the frame is whole, but nobody sent it. */
	if (is_loop(&vm1->config) && sequence >= pair->made) {
		stats->corrupt++;
		return;
	}
	stats->received++;
	stats->received_bytes += length;
	switch (sequence_mark(pair->sequence, sequence)) {
	case SEQUENCE_DUPLICATE:
		stats->duplicated++;
		return;
	case SEQUENCE_LATE:
		stats->reordered++;
		break;
	case SEQUENCE_NEW:
		stats->highest += pair->sequence->next - highest;
		break;
	}
	stats->distinct++;
}

static void judge_frame(struct vm1 *vm1, const struct frame *frame, uint32_t length)
{
	struct vm1_stats *stats = vm1->stats;
	uint32_t index;
	struct pair *pair;

	if (length < VM1_FRAME_MIN || frame->ethertype != FRAME_ETHERTYPE ||
	    frame->magic != FRAME_MAGIC) {
		stats->foreign++;
		return;
	}
	index = frame->stream - vm1->config.peer_stream;
	if (index >= vm1->config.pairs) {
		stats->foreign++;
		return;
	}
	if (!frame_is_intact(frame, length)) {
		stats->corrupt++;
		return;
	}
	pair = &vm1->pairs[index];
	if (frame->acknowledged > pair->peer_has && frame->acknowledged <= pair->made) {
		stats->acknowledged += frame->acknowledged - pair->peer_has;
		pair->peer_has = frame->acknowledged;
	}
	if (frame->kind == FRAME_DATA)
		judge_data(vm1, pair, frame->sequence, length);
}

/* The pieces of a frame of offload.h are frames each; their places in it are the TCP sequence numbers'. */
static bool judge_pieces(struct vm1 *vm1, const struct received *received)
{
	struct frame *piece = (struct frame *)vm1->piece;
	uint32_t first, offset, begin;
	bool intact;

	begin = offload_open(received->frame, received->length, &received->header, &first, &intact);
	if (!begin)
		return false;
	for (offset = begin; intact && offset < received->length; offset += (uint32_t)piece->length) {
		uint32_t left = received->length - offset;

		if (left < VM1_FRAME_MIN)
			break;
		memcpy(piece, received->frame + offset, left < VM1_FRAME_MAX ? left : VM1_FRAME_MAX);
		if (piece->length < VM1_FRAME_MIN || piece->length > left ||
		    piece->reserved * piece->length != first + (offset - begin))
			break;
		judge_frame(vm1, piece, (uint32_t)piece->length);
	}
	vm1->stats->corrupt += offset != received->length;
	return true;
}

static void judge(struct vm1 *vm1, const struct received *received)
{
	if (!vm1->config.offloads || !judge_pieces(vm1, received))
		judge_frame(vm1, (const struct frame *)received->frame, received->length);
}

static uint32_t receive_turn(struct vm1 *vm1, struct ring *ring)
{
	struct received received;
	uint32_t packets = 0;

	if (ring->asleep || !ring_look(ring))
		return 0;
	while (receive_next(vm1, ring, &received)) {
		if (received.usable)
			judge(vm1, &received);
		receive_done(vm1, ring, &received);
		packets++;
	}
	ring_publish(ring);
	return packets;
}

static struct frame fields_of(const struct vm1 *vm1, const struct pair *pair, enum frame_kind kind)
{
	struct frame fields = {
		.ethertype = FRAME_ETHERTYPE,
		.kind = (uint8_t)kind,
		.magic = FRAME_MAGIC,
		.stream = vm1->config.stream + (uint32_t)(pair - vm1->pairs),
		.sequence = pair->made,
		.acknowledged = is_loop(&vm1->config) ? 0 : pair->sequence->distinct,
	};

	memcpy(fields.destination, vm1->config.destination, sizeof(fields.destination));
	memcpy(fields.source, vm1->config.source, sizeof(fields.source));
	return fields;
}

static void post(struct vm1 *vm1, struct pair *pair, uint32_t slot, uint32_t length,
		 const struct net_header *header)
{
	struct ring *ring = &pair->transmit;

	memcpy(ring_header(ring, slot), header, ring->header_bytes);
	ring_post(ring, slot, ring->header_bytes + length);
	if (vm1->config.offloads)
		pair->sums[slot] = frame_hash(ring_header(ring, slot),
					      ring->header_bytes + length);
}

static void make_frame(struct vm1 *vm1, struct pair *pair, enum frame_kind kind, uint32_t length)
{
	static const struct net_header empty;
	uint32_t slot = ring_free_pop(&pair->transmit);
	struct frame *frame = (struct frame *)ring_frame(&pair->transmit, slot);

	*frame = fields_of(vm1, pair, kind);
	frame_seal(frame, length);
	pair->peer_told = frame->acknowledged;
	post(vm1, pair, slot, length, &empty);
}

static void count_made(struct vm1 *vm1, struct pair *pair, uint32_t length)
{
	pair->made++;
	vm1->stats->sent++;
	vm1->stats->sent_bytes += length;
}

/* A frame in pieces, whose checksum, and cutting, is left to the device; how many pieces. */
static uint32_t make_offloaded(struct vm1 *vm1, struct pair *pair, uint64_t most, uint32_t length)
{
	struct offload_shape shape = offload_draw(vm1, vm1->stats->offload_sent,
						  most < OFFLOAD_PIECES_MAX ? (uint32_t)most :
									      OFFLOAD_PIECES_MAX,
						  length);
	uint32_t slot = ring_free_pop(&pair->transmit), offset = offload_header_bytes(shape.ipv6);
	uint8_t *frame = ring_frame(&pair->transmit, slot);
	struct frame *piece = (struct frame *)vm1->piece;
	struct net_header header;

	for (uint32_t place = 0; place < shape.pieces; place++, offset += shape.piece_bytes) {
		*piece = fields_of(vm1, pair, FRAME_DATA);
		piece->reserved = (uint8_t)place;
		frame_seal(piece, shape.piece_bytes);
		memcpy(frame + offset, piece, shape.piece_bytes);
		pair->peer_told = piece->acknowledged;
		count_made(vm1, pair, shape.piece_bytes);
	}
	memcpy(frame, piece, 12);
	offload_seal(frame, &shape, &header);
	post(vm1, pair, slot, offset, &header);
	vm1->stats->offload_sent++;
	return shape.pieces;
}

/* How many frames of this stream may be made, were it not for the rate. */
static uint64_t room(const struct vm1 *vm1, const struct pair *pair)
{
	const struct vm1_config *config = &vm1->config;
	uint64_t most = UINT64_MAX, flying = 0;

	if (vm1->finishing)
		return 0;
	if (pair->count || config->count)
		most = pair->count - pair->made;
	if (is_loop(config))
		flying = pair->made - pair->sequence->distinct;
	else if (is_dialogue(config))
		flying = pair->made - pair->peer_has;
	/* So that a frame waits for the transmit ring's call as well. */
	if (config->sleep && flying < ring_flying(&pair->transmit))
		flying = ring_flying(&pair->transmit);
	if (flying >= config->window)
		return 0;
	return most < config->window - flying ? most : config->window - flying;
}

/* How many frames of this stream may be made now. */
static uint64_t allowance(const struct vm1 *vm1, const struct pair *pair, uint64_t now)
{
	const struct vm1_config *config = &vm1->config;
	uint64_t most = room(vm1, pair), due;

	if (!most || !config->rate)
		return most;
	due = (uint64_t)((double)(now - vm1->first_ns) * 1e-9 * (double)config->rate /
			 config->pairs);
	if (due <= pair->made)
		return 0;
	return most < due - pair->made ? most : due - pair->made;
}

/* quiet: nothing came this turn, so an acknowledgement need not wait for company. */
static uint32_t transmit_turn(struct vm1 *vm1, struct pair *pair, uint64_t now, bool quiet)
{
	struct ring *ring = &pair->transmit;
	uint32_t reclaimed = ring->asleep ? 0 : transmit_reclaim(vm1, pair), packets = 0;
	uint64_t most = allowance(vm1, pair, now);

	while (packets < BURST && packets < most && ring->free_count) {
		uint32_t length = draw_size(vm1);

		/* With offloads every other frame has one. */
		if ((vm1->config.offloads & VM1_OFFLOAD_CSUM) && ring->free_count % 2) {
			packets += make_offloaded(vm1, pair, most - packets, length);
			continue;
		}
		make_frame(vm1, pair, FRAME_DATA, length);
		count_made(vm1, pair, length);
		packets++;
	}
	if (!packets && quiet && is_dialogue(&vm1->config) && ring->free_count &&
	    pair->sequence->distinct > pair->peer_told)
		make_frame(vm1, pair, FRAME_ACKNOWLEDGE, VM1_FRAME_MIN);
	ring_publish(ring);
	return packets + reclaimed;
}

static bool pair_is_done(const struct vm1 *vm1, const struct pair *pair)
{
	const struct vm1_config *config = &vm1->config;

	if (!config->count && !vm1->finishing)
		return false;
	if (is_loop(config))
		return pair->sequence->distinct == pair->count;
	if ((config->directions & VM1_TRANSMIT) && pair->made != pair->count)
		return false;
	if (is_dialogue(config) && (pair->peer_has != pair->made ||
				    pair->peer_told != pair->sequence->distinct))
		return false;
	return vm1->finishing || !(config->directions & VM1_RECEIVE) ||
	       pair->sequence->distinct >= pair->count;
}

static bool is_done(const struct vm1 *vm1)
{
	for (uint32_t index = 0; index < vm1->config.pairs; index++)
		if (!pair_is_done(vm1, &vm1->pairs[index]))
			return false;
	return true;
}

static uint32_t turn(struct vm1 *vm1, uint64_t now)
{
	uint32_t moved = 0;

	/* Receive buffers are made available before a frame that may need them is sent. */
	for (uint32_t index = 0; index < vm1->config.pairs; index++)
		if (vm1->config.directions & VM1_RECEIVE)
			moved += receive_turn(vm1, &vm1->pairs[index].receive);
	for (uint32_t index = 0; index < vm1->config.pairs; index++)
		if (vm1->config.directions & VM1_TRANSMIT)
			moved += transmit_turn(vm1, &vm1->pairs[index], now, !moved);
	return moved;
}

/* When there may be something to send, whatever the device does. */
static uint64_t next_due_ns(const struct vm1 *vm1)
{
	const struct vm1_config *config = &vm1->config;
	uint64_t next = UINT64_MAX;

	if (!(config->directions & VM1_TRANSMIT))
		return next;
	for (uint32_t index = 0; index < config->pairs; index++) {
		const struct pair *pair = &vm1->pairs[index];
		double seconds = config->rate ? (double)(pair->made + 1) * config->pairs /
						(double)config->rate : 0;
		uint64_t due = vm1->first_ns + (uint64_t)(seconds * 1e9);

		if (pair->transmit.free_count && room(vm1, pair) && due < next)
			next = due;
	}
	return next;
}

static uint32_t time_out(struct vm1 *vm1)
{
	if (vm1->config.sleep)
		vm1->stats->lost_call += sleep_count_lost(vm1);
	return VM1_TIMED_OUT;
}

uint32_t verify_run(struct vm1 *vm1, uint64_t deadline_ns)
{
	const uint32_t turns_per_clock = vm1->config.sleep ? 1 : TURNS_PER_CLOCK;
	uint64_t now = now_ns();
	uint32_t empty = 0;

	while (now < deadline_ns) {
		for (uint32_t turns = 0; turns < turns_per_clock; turns++) {
			uint32_t moved = turn(vm1, now);

			empty = moved ? 0 : empty + 1;
			if (moved)
				vm1->progress_ns = now;
		}
		if (is_done(vm1))
			return VM1_DONE;
		if (vm1->config.sleep && empty) {
			uint64_t due = next_due_ns(vm1);

			sleep_until_called(vm1, due < deadline_ns ? due : deadline_ns);
		}
		now = now_ns();
		if (now - vm1->progress_ns > vm1->config.timeout_ns)
			return time_out(vm1);
		if (empty > TURNS_BEFORE_YIELD)
			sched_yield();
	}
	return VM1_BUDGET;
}
