/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

uint32_t draw_size(struct vm1 *vm1)
{
	const struct vm1_config *config = &vm1->config;
	uint32_t draw;

	if (!config->imix && config->size_min == config->size_max)
		return config->size_min;
	/* xorshift64: any sequence will do, a cheap one that repeats is best */
	vm1->random ^= vm1->random << 13;
	vm1->random ^= vm1->random >> 7;
	vm1->random ^= vm1->random << 17;
	draw = (uint32_t)(vm1->random >> 32);
	if (config->imix)
		return draw % 12 < 7 ? 60 : draw % 12 < 11 ? 590 : 1514;
	return config->size_min + draw % (config->size_max - config->size_min + 1);
}

/* 2.7.5.1: a device writes neither what is readable to it nor a descriptor. */
static void check_untouched(struct vm1 *vm1, const struct pair *pair,
			    const struct used_chain *chain)
{
	const struct ring *ring = &pair->transmit;
	static const uint8_t empty[sizeof(struct net_header)];
	const struct frame *frame = (const struct frame *)ring_frame(ring, chain->slot);
	const uint64_t *sums = vm1->config.offloads ? pair->sums : NULL;

	if (sums)
		vm1->stats->readable_written +=
			frame_hash(ring_header(ring, chain->slot), chain->posted) !=
			sums[chain->slot];
	else if (memcmp(ring_header(ring, chain->slot), empty, ring->header_bytes) ||
	    !frame_is_intact(frame, chain->posted - ring->header_bytes))
		vm1->stats->readable_written++;
	vm1->stats->desc_written += !ring_desc_intact(ring, chain);
}

uint32_t transmit_reclaim(struct vm1 *vm1, struct pair *pair)
{
	struct ring *ring = &pair->transmit;
	struct used_chain chain;
	uint32_t reclaimed = 0;

	if (!ring_look(ring))
		return 0;
	while (ring_take(ring, &chain)) {
		if (vm1->config.mode == VM1_VERIFY)
			check_untouched(vm1, pair, &chain);
		ring_free_push(ring, chain.slot);
		reclaimed++;
	}
	return reclaimed;
}

uint32_t idle_run(struct vm1 *vm1, uint64_t deadline_ns)
{
	uint64_t now = now_ns();

	(void)vm1;
	if (now < deadline_ns)
		poll(NULL, 0, (int)((deadline_ns - now) / 1000000u) + 1);
	return VM1_BUDGET;
}

static int make_pair(struct vm1 *vm1, uint32_t index, const struct vm1_ring_config *rings)
{
	struct pair *pair = &vm1->pairs[index];
	const struct vm1_config *config = &vm1->config;
	int error;

	error = ring_init(&pair->receive, &rings[2 * index], config->header_bytes, vm1->stats);
	if (!error)
		error = ring_init(&pair->transmit, &rings[2 * index + 1], config->header_bytes,
				  vm1->stats);
	if (error)
		return error;
	pair->sequence = calloc(1, sizeof(*pair->sequence));
	pair->count = config->count / config->pairs + (index < config->count % config->pairs);
	pair->sums = calloc(rings[2 * index + 1].slot_count, sizeof(*pair->sums));
	return pair->sequence && pair->sums ? 0 : ENOMEM;
}

static bool config_is_sane(const struct vm1_config *config)
{
	return config->mode <= VM1_LATENCY && config->pairs && config->pairs <= VM1_PAIRS_MAX &&
	       (config->header_bytes == 10 || config->header_bytes == 12) &&
	       (config->header_bytes == 12 || !config->mergeable) && config->touch <= 2 &&
	       config->leave <= VM1_LEAVE_UFO &&
	       config->size_min >= VM1_FRAME_MIN && config->size_min <= config->size_max &&
	       config->size_max <= VM1_FRAME_MAX;
}

static void stock(struct vm1 *vm1)
{
	for (uint32_t index = 0; index < vm1->config.pairs; index++)
		if (vm1->config.directions & VM1_RECEIVE)
			receive_stock(vm1, &vm1->pairs[index].receive);
	if (vm1->config.mode == VM1_REPLAY)
		replay_stock(vm1);
}

struct vm1 *vm1_new(const struct vm1_config *config, const struct vm1_ring_config *rings,
		    struct vm1_stats *stats)
{
	struct vm1 *vm1;
	int error = EINVAL;

	if (!config_is_sane(config)) {
		errno = EINVAL;
		return NULL;
	}
	vm1 = calloc(1, sizeof(*vm1));
	if (!vm1)
		return NULL;
	vm1->config = *config;
	vm1->stats = stats;
	vm1->random = 0x2545f4914f6cdd1dull ^ config->stream;
	vm1->pairs = calloc(config->pairs, sizeof(*vm1->pairs));
	vm1->bounce = malloc(4 * VM1_FRAME_MAX);
	vm1->slicer = calloc(1, sizeof(*vm1->slicer));
	vm1->latency = calloc(1, sizeof(*vm1->latency));
	vm1->piece = malloc(VM1_FRAME_MAX);
	if (!vm1->pairs || !vm1->bounce || !vm1->slicer || !vm1->latency ||
	    !vm1->piece) {
		vm1_free(vm1);
		errno = ENOMEM;
		return NULL;
	}
	for (uint32_t index = 0; index < config->pairs; index++) {
		error = make_pair(vm1, index, rings);
		if (error) {
			vm1_free(vm1);
			errno = error;
			return NULL;
		}
	}
	vm1->slicer->length = config->slice_cycles;
	stock(vm1);
	vm1_touch_clock(vm1);
	return vm1;
}

void vm1_free(struct vm1 *vm1)
{
	for (uint32_t index = 0; vm1->pairs && index < vm1->config.pairs; index++) {
		ring_free(&vm1->pairs[index].receive);
		ring_free(&vm1->pairs[index].transmit);
		free(vm1->pairs[index].sequence);
		free(vm1->pairs[index].sums);
	}
	free(vm1->pairs);
	free(vm1->bounce);
	free(vm1->slicer);
	free(vm1->latency);
	free(vm1->piece);
	free(vm1);
}

uint32_t vm1_run(struct vm1 *vm1, uint64_t budget_ns)
{
	static uint32_t (*const modes[])(struct vm1 *, uint64_t) = {
		[VM1_REPLAY] = replay_run,
		[VM1_VERIFY] = verify_run,
		[VM1_TAP] = tap_run,
		[VM1_IDLE] = idle_run,
		[VM1_LATENCY] = latency_run,
	};

	return modes[vm1->config.mode](vm1, now_ns() + budget_ns);
}

void vm1_touch_clock(struct vm1 *vm1)
{
	vm1->progress_ns = now_ns();
	if (!vm1->first_ns)
		vm1->first_ns = vm1->progress_ns;
}

void vm1_kick(struct vm1 *vm1)
{
	for (uint32_t index = 0; index < vm1->config.pairs; index++) {
		ring_kick(&vm1->pairs[index].receive);
		ring_kick(&vm1->pairs[index].transmit);
	}
}

uint32_t vm1_base(struct vm1 *vm1, uint32_t ring)
{
	struct pair *pair = &vm1->pairs[ring / 2];

	return ring_base(ring % 2 ? &pair->transmit : &pair->receive);
}

void vm1_finish(struct vm1 *vm1)
{
	for (uint32_t index = 0; index < vm1->config.pairs; index++)
		vm1->pairs[index].count = vm1->pairs[index].made;
	vm1->finishing = true;
	vm1_touch_clock(vm1);
}

uint32_t vm1_drain(struct vm1 *vm1, uint64_t budget_ns)
{
	uint64_t deadline_ns = now_ns() + budget_ns;
	uint32_t left;

	do {
		left = 0;
		for (uint32_t index = 0; index < vm1->config.pairs; index++) {
			transmit_reclaim(vm1, &vm1->pairs[index]);
			left += ring_flying(&vm1->pairs[index].transmit);
		}
	} while (left && now_ns() < deadline_ns);
	return left;
}

uint32_t vm1_abi(void)
{
	return VM1_ABI;
}

uint64_t vm1_sizeof(const char *structure)
{
	static const struct {
		const char *name;
		uint64_t bytes;
	} sizes[] = {
		{ "vm1_slot", sizeof(struct vm1_slot) },
		{ "vm1_ring_config", sizeof(struct vm1_ring_config) },
		{ "vm1_config", sizeof(struct vm1_config) },
		{ "vm1_stats", sizeof(struct vm1_stats) },
		{ "vm1_slice", sizeof(struct vm1_slice) },
		{ "vm1_probe_result", sizeof(struct vm1_probe_result) },
		{ "vm1_latency", sizeof(struct vm1_latency) },
	};

	for (uint32_t index = 0; index < sizeof(sizes) / sizeof(sizes[0]); index++)
		if (!strcmp(structure, sizes[index].name))
			return sizes[index].bytes;
	return 0;
}
