/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The least that a device can do for a frame: it reads the ring's words, and of a frame that goes through the CPU
 * the first 64 bytes (or takes it from the port and writes them, with the header), then returns the chain and
 * publishes. It judges nothing and looks nowhere else, so only a VM1 that is ours may be served by it. With the
 * rest of the kernel around it, and in place of its turns (variant.py), it shows how fast the kernel could be.
 */
#include "plain.h"

#define LINE 64u
#define IN_PLACE_OF(turn) WRAPPED(LAYOUT(turn))
#define WRAPPED(turn) WRAPPED_NAME(turn)
#define WRAPPED_NAME(turn) __wrap_##turn

uint32_t IN_PLACE_OF(dequeue_turn)(struct rk_queue *queue, struct rk_port *port, struct place place,
				   uint32_t limit, uint64_t *clock);
uint32_t IN_PLACE_OF(enqueue_turn)(struct rk_queue *queue, struct rk_port *port, struct place place,
				   uint32_t limit, uint64_t *clock);

/* Keeps reads whose result nobody wants. */
static uint64_t sink[LINE / 8];

struct chains {
	uint32_t count;
	struct head heads[RK_BURST_MAX];
	struct packed_desc descs[RK_BURST_MAX]; /* of split rings too: an address, and length in front */
};

/* Every chain is one descriptor. */
static void read_chains(struct rk_queue *queue, const struct place *place, uint32_t limit,
			uint32_t flags, struct chains *chains)
{
	chains->count = place->left < limit ? place->left : limit;
	if (LAYOUT_PACKED) {
		chains->count = packed_plain(queue, place, flags, chains->count, chains->descs,
					     chains->heads);
		return;
	}
	split_heads(queue, place, chains->heads, chains->count);
	for (uint32_t i = 0; i < chains->count; i++)
		shm_copy_in(&chains->descs[i], split_desc(queue, chains->heads[i].id),
			    sizeof(chains->descs[i]));
	split_prefetch_used(queue, chains->count);
}

static struct shm *buffer(struct rk_queue *queue, const struct packed_desc *desc)
{
	const struct rk_region *region = map_find(queue->map, desc->address, &queue->hint);

	return (struct shm *)(uintptr_t)(desc->address - region->bus + region->host);
}

static void counted(struct rk_queue *queue, uint32_t chains, uint32_t frame_bytes, uint64_t *clock)
{
	queue->next = queue->used_next;
	queue_publish(queue);
	queue->stats->packets += chains;
	queue->stats->bytes += (uint64_t)chains * frame_bytes;
	queue->stats->bursts++;
	queue->stats->cycles += clock_lap(clock);
}

uint32_t IN_PLACE_OF(dequeue_turn)(struct rk_queue *queue, struct rk_port *port, struct place place,
				   uint32_t limit, uint64_t *clock)
{
	struct shm *frames[RK_BURST_MAX];
	struct chains chains;

	read_chains(queue, &place, limit, 0, &chains);
	for (uint32_t i = 0; i < chains.count; i++) {
		sink[0] += chains.descs[i].address + chains.descs[i].rest;
		if (!port->reads)
			continue;
		frames[i] = shm_at(buffer(queue, &chains.descs[i]), queue->header_bytes);
		shm_prefetch_frame((void *)frames[i], LINE);
	}
	for (uint32_t i = 0; port->reads && i < chains.count; i++)
		shm_copy_in(sink, frames[i], sizeof(sink));
	ring_return_read_run(queue, chains.heads, chains.count);
	counted(queue, chains.count, rest_length(chains.descs[0].rest) - queue->header_bytes, clock);
	return chains.count;
}

uint32_t IN_PLACE_OF(enqueue_turn)(struct rk_queue *queue, struct rk_port *port, struct place place,
				   uint32_t limit, uint64_t *clock)
{
	static const uint8_t header[HEADER_BYTES_MAX] = {[HEADER_BEFORE_BUFFERS] = 1};
	uint32_t lengths[RK_BURST_MAX];
	struct shm *buffers[RK_BURST_MAX];
	struct rk_frame frames[RK_BURST_MAX];
	struct chains chains;
	size_t bytes;

	/* Ports that have frames have as many as are asked for. */
	if (port->ops->rx(port, frames, limit) == 0)
		return 0;
	bytes = frames[0].bytes < LINE ? frames[0].bytes : LINE;
	read_chains(queue, &place, limit, DESC_WRITE, &chains);
	for (uint32_t i = 0; i < chains.count; i++) {
		buffers[i] = buffer(queue, &chains.descs[i]);
		lengths[i] = queue->header_bytes + frames[i].bytes;
		shm_prefetch_write(buffers[i]);
		shm_prefetch_write(shm_at(buffers[i], queue->header_bytes + LINE - 1));
	}
	for (uint32_t i = 0; i < chains.count; i++) {
		shm_copy_out(buffers[i], header, queue->header_bytes);
		shm_copy_out(shm_at(buffers[i], queue->header_bytes),
			     frames[i].segments->iov_base, bytes);
	}
	port->ops->rx_done(port, chains.count);
	ring_return_run(queue, chains.heads, lengths, chains.count);
	counted(queue, chains.count, frames[0].bytes, clock);
	return chains.count;
}
