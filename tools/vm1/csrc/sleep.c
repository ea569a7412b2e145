/* SPDX-License-Identifier: BSD-3-Clause */
#define _GNU_SOURCE /* ppoll: a millisecond is too long for verify's rates */
#include <poll.h>
#include <unistd.h>

#include "sleep.h"

/* The rings that carry frames; how many. */
static uint32_t rings_in_use(struct vm1 *vm1, struct ring *rings[2 * VM1_PAIRS_MAX])
{
	uint32_t count = 0;

	for (uint32_t index = 0; index < vm1->config.pairs; index++) {
		if (vm1->config.directions & VM1_RECEIVE)
			rings[count++] = &vm1->pairs[index].receive;
		if (vm1->config.directions & VM1_TRANSMIT)
			rings[count++] = &vm1->pairs[index].transmit;
	}
	return count;
}

static void wake(struct vm1 *vm1, struct ring *ring)
{
	uint64_t count;

	if (read(ring->call_fd, &count, sizeof(count)) != (ssize_t)sizeof(count))
		return;
	vm1->stats->calls += count;
	ring->asleep = false;
	ring_disable_calls(ring);
}

void sleep_until_called(struct vm1 *vm1, uint64_t until_ns)
{
	struct ring *rings[2 * VM1_PAIRS_MAX];
	struct pollfd waits[2 * VM1_PAIRS_MAX];
	uint32_t count = rings_in_use(vm1, rings);
	uint64_t now = now_ns(), left = now < until_ns ? until_ns - now : 0;
	bool all = true;

	for (uint32_t index = 0; index < count; index++) {
		struct ring *ring = rings[index];

		if (!ring->asleep && ring_enable_calls(ring)) {
			ring_disable_calls(ring);
			all = false;
		} else {
			ring->asleep = true;
		}
		waits[index] = (struct pollfd){ .fd = ring->call_fd, .events = POLLIN };
	}
	if (all) {
		const struct timespec most = { .tv_sec = (time_t)(left / 1000000000u),
					       .tv_nsec = (long)(left % 1000000000u) };

		if (ppoll(waits, count, &most, NULL) <= 0)
			return;
		for (uint32_t index = 0; index < count; index++)
			if (waits[index].revents & POLLIN)
				wake(vm1, rings[index]);
	}
}

uint32_t sleep_count_lost(struct vm1 *vm1)
{
	struct ring *rings[2 * VM1_PAIRS_MAX];
	uint32_t count = rings_in_use(vm1, rings), lost = 0;

	for (uint32_t index = 0; index < count; index++)
		lost += rings[index]->asleep && ring_look(rings[index]);
	return lost;
}
