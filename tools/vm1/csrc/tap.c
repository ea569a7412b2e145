/* SPDX-License-Identifier: BSD-3-Clause */
/* Bridges the virtio-net device to a TAP device: a real network stack on VM1's side. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "engine.h"

#define ETHERNET_HEADER 14u

/* Receive rings -> TAP. */
static uint32_t to_tap(struct vm1 *vm1, struct ring *ring)
{
	struct vm1_stats *stats = vm1->stats;
	struct received received;
	uint32_t packets = 0;

	if (!ring_look(ring))
		return 0;
	while (packets < BURST && receive_next(vm1, ring, &received)) {
		if (received.usable &&
		    write(vm1->config.tap_fd, received.frame, received.length) > 0) {
			stats->received++;
			stats->received_bytes += received.length;
		} else {
			stats->tap_dropped++;
		}
		receive_done(vm1, ring, &received);
		packets++;
	}
	ring_publish(ring);
	return packets;
}

/* TAP -> transmit ring; -1 if the device is no more. */
static int from_tap(struct vm1 *vm1, struct pair *pair)
{
	struct ring *ring = &pair->transmit;
	struct vm1_stats *stats = vm1->stats;
	int packets = 0;

	transmit_reclaim(vm1, pair);
	while (packets < (int)BURST && ring->free_count) {
		/* Looked at before it is taken: IN_ORDER wants slots in their order (2.7.9.1). */
		uint32_t slot = ring->free_slots[ring->free_head & ring->mask];
		uint32_t capacity = ring->capacity - ring->header_bytes;
		ssize_t length = read(vm1->config.tap_fd, ring_frame(ring, slot), capacity);

		if (length < 0 && errno != EAGAIN && errno != EINTR && errno != EIO)
			return -1;
		if (length < (ssize_t)ETHERNET_HEADER)
			break;
		ring_free_pop(ring);
		transmit_post(ring, slot, (uint32_t)length);
		stats->sent++;
		stats->sent_bytes += (uint64_t)length;
		packets++;
	}
	ring_publish(ring);
	return packets;
}

static void swallow_call(struct vm1 *vm1, int call_fd)
{
	uint64_t count;

	if (read(call_fd, &count, sizeof(count)) == (ssize_t)sizeof(count))
		vm1->stats->calls += count;
}

/* Sleeps until the device calls, the TAP device has a frame that a slot is free for, or the deadline. */
static uint32_t rest(struct vm1 *vm1, uint64_t deadline_ns)
{
	struct pollfd waits[VM1_PAIRS_MAX + 2];
	struct ring *transmit = &vm1->pairs[0].transmit;
	uint32_t pairs = vm1->config.pairs;
	bool full = !transmit->free_count, missed = false;
	uint64_t now = now_ns();
	int ready = 0;

	for (uint32_t index = 0; index < pairs; index++) {
		struct ring *ring = &vm1->pairs[index].receive;

		waits[index] = (struct pollfd){ .fd = ring->call_fd, .events = POLLIN };
		missed |= ring_enable_calls(ring);
	}
	waits[pairs] = (struct pollfd){ .fd = full ? transmit->call_fd : -1, .events = POLLIN };
	if (full)
		missed |= ring_enable_calls(transmit);
	waits[pairs + 1] = (struct pollfd){ .fd = vm1->config.tap_fd,
					    .events = full ? 0 : POLLIN };
	if (!missed && now < deadline_ns)
		ready = poll(waits, pairs + 2, (int)((deadline_ns - now) / 1000000u) + 1);
	for (uint32_t index = 0; index <= pairs; index++)
		if (ready > 0 && (waits[index].revents & POLLIN))
			swallow_call(vm1, waits[index].fd);
	for (uint32_t index = 0; index < pairs; index++)
		ring_disable_calls(&vm1->pairs[index].receive);
	if (full)
		ring_disable_calls(transmit);
	if (ready > 0 && (waits[pairs + 1].revents & (POLLERR | POLLHUP | POLLNVAL)))
		return VM1_TAP_GONE;
	return VM1_BUDGET;
}

uint32_t tap_run(struct vm1 *vm1, uint64_t deadline_ns)
{
	do {
		uint32_t moved = 0;
		int sent;

		for (uint32_t index = 0; index < vm1->config.pairs; index++)
			moved += to_tap(vm1, &vm1->pairs[index].receive);
		sent = from_tap(vm1, &vm1->pairs[0]);
		if (sent < 0)
			return VM1_TAP_GONE;
		if (!moved && !sent && !vm1->config.poll &&
		    rest(vm1, deadline_ns) == VM1_TAP_GONE)
			return VM1_TAP_GONE;
	} while (now_ns() < deadline_ns);
	return VM1_BUDGET;
}
