/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Latency at an offered rate. Every frame has its time by the clock, and bears that time, not the one at
 * which it could be sent: where the ring was full, or this thread was away, the frame's wait for that is part
 * of its latency.
 */
#include <string.h>

#include "engine.h"

#define TURNS_PER_CLOCK 64u

static void post(struct vm1 *vm1, struct pair *pair, uint64_t stamp)
{
	struct ring *ring = &pair->transmit;
	uint32_t slot = ring_free_pop(ring), length = draw_size(vm1);
	struct frame *frame = (struct frame *)ring_frame(ring, slot);
	struct frame fields = {
		.ethertype = FRAME_ETHERTYPE,
		.kind = FRAME_STAMP,
		.magic = FRAME_MAGIC,
		.stream = vm1->config.stream,
		.sequence = stamp,
		.acknowledged = vm1->latency->step,
		.length = length,
	};

	memcpy(fields.destination, vm1->config.destination, sizeof(fields.destination));
	memcpy(fields.source, vm1->config.source, sizeof(fields.source));
	*frame = fields;
	transmit_post(ring, slot, length);
	vm1->stats->sent++;
	vm1->stats->sent_bytes += length;
}

/* The frames that are due, as far as there is room, on one queue pair after the other. */
static void send_due(struct vm1 *vm1)
{
	struct latency *latency = vm1->latency;
	uint64_t elapsed = tsc() - latency->begin;
	uint32_t pairs = vm1->config.pairs;

	for (uint32_t index = 0; index < pairs; index++)
		transmit_reclaim(vm1, &vm1->pairs[index]);
	while (latency->cycles > 0 && !vm1->finishing) {
		struct pair *pair = &vm1->pairs[latency->found.sent % pairs];
		uint64_t due = (uint64_t)((double)latency->found.sent * latency->cycles);

		if (due > elapsed || !pair->transmit.free_count)
			break;
		post(vm1, pair, latency->begin + due);
		latency->found.sent++;
	}
	for (uint32_t index = 0; index < pairs; index++)
		ring_publish(&vm1->pairs[index].transmit);
}

static void judge(struct vm1 *vm1, const struct received *received)
{
	const struct frame *frame = (const struct frame *)received->frame;
	struct vm1_latency *found = &vm1->latency->found;
	uint64_t now = tsc();

	if (received->length < VM1_FRAME_MIN || frame->ethertype != FRAME_ETHERTYPE ||
	    frame->magic != FRAME_MAGIC || frame->kind != FRAME_STAMP ||
	    frame->stream != vm1->config.stream) {
		vm1->stats->foreign++;
		return;
	}
	if (frame->length != received->length || frame->sequence > now) {
		vm1->stats->corrupt++;
		return;
	}
	vm1->stats->received++;
	vm1->stats->received_bytes += received->length;
	if (frame->acknowledged != vm1->latency->step)
		return;
	found->received++;
	found->counts[latency_bucket(now - frame->sequence)]++;
	if (now - frame->sequence > found->most_cycles)
		found->most_cycles = now - frame->sequence;
}

static void take_received(struct vm1 *vm1, struct ring *ring)
{
	struct received received;

	if (!ring_look(ring))
		return;
	while (receive_next(vm1, ring, &received)) {
		if (received.usable)
			judge(vm1, &received);
		receive_done(vm1, ring, &received);
	}
	ring_publish(ring);
}

uint32_t latency_run(struct vm1 *vm1, uint64_t deadline_ns)
{
	const struct vm1_latency *found = &vm1->latency->found;

	do {
		for (uint32_t turns = 0; turns < TURNS_PER_CLOCK; turns++) {
			for (uint32_t index = 0; index < vm1->config.pairs; index++)
				take_received(vm1, &vm1->pairs[index].receive);
			send_due(vm1);
		}
		if (vm1->finishing && found->received >= found->sent)
			return VM1_DONE;
	} while (now_ns() < deadline_ns);
	return VM1_BUDGET;
}

void vm1_latency_begin(struct vm1 *vm1, double cycles)
{
	struct latency *latency = vm1->latency;

	latency->step++;
	latency->cycles = cycles;
	latency->found = (struct vm1_latency){ 0 };
	latency->begin = tsc();
	vm1->finishing = false;
}

void vm1_latency_found(const struct vm1 *vm1, struct vm1_latency *found)
{
	*found = vm1->latency->found;
}
