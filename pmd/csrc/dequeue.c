/* SPDX-License-Identifier: BSD-3-Clause */
/* VM1 transmits: available chains become frames, the port takes them, the chains are returned. */
#include "queue.h"

#define ETHERNET_HEADER_BYTES 14u

/* What became of each chain of the burst, in ring order. */
struct slot {
	uint16_t head;
	bool has_frame;
	uint32_t verdict; /* without a frame: why */
};

struct burst {
	uint32_t chains, frame_count;
	bool bad_head; /* the entry after the last chain names no descriptor */
	struct slot slots[RK_BURST_MAX];
	struct rk_frame frames[RK_BURST_MAX];
};

/* A frame of more segments than ports take becomes one segment of private memory. */
static void flatten(struct rk_queue *queue, struct rk_frame *frame)
{
	uint32_t at = 0;

	for (uint32_t i = 0; i < frame->segment_count; i++) {
		shm_copy_in(queue->bounce + at, frame->segments[i].iov_base,
			    frame->segments[i].iov_len);
		at += (uint32_t)frame->segments[i].iov_len;
	}
	frame->segments[0].iov_base = queue->bounce;
	frame->segments[0].iov_len = at;
	frame->segment_count = 1;
}

/* Makes the frame of one chain at the pool's tail. */
static inline enum rk_drop make_frame(struct rk_queue *queue, uint16_t head, struct iovec *pool,
				      struct rk_frame *frame)
{
	struct chain chain = {.segments = pool, .skip = queue->header_bytes};
	enum rk_drop verdict = chain_walk(queue, head, RK_READ, &chain);

	if (verdict != RK_SENT)
		return verdict;
	if (chain.bytes < queue->header_bytes + ETHERNET_HEADER_BYTES)
		return RK_DROP_RUNT;
	frame->segments = pool;
	frame->segment_count = chain.count;
	frame->bytes = (uint32_t)chain.bytes - queue->header_bytes;
	frame->verdict = RK_SENT;
	frame->offload = (struct rk_offload){0};
	return RK_SENT;
}

static void parse(struct rk_queue *queue, uint32_t count, struct burst *burst)
{
	struct iovec *pool = queue->segments;
	uint16_t heads[RK_BURST_MAX];

	burst->chains = 0;
	burst->frame_count = 0;
	burst->bad_head = false;
	for (uint32_t i = 0; i < count; i++) {
		heads[i] = queue_head(queue, i);
		shm_prefetch(shm_at(queue->desc, 16u * (heads[i] & queue->mask)));
	}
	for (uint32_t i = 0; i < count; i++) {
		struct slot *slot = &burst->slots[i];
		struct rk_frame *frame = &burst->frames[burst->frame_count];

		if (heads[i] >= queue->size) {
			burst->bad_head = true;
			return;
		}
		if (queue->walked >= TURN_WALK_MAX)
			return;
		burst->chains++;
		slot->head = heads[i];
		slot->verdict = RK_DROP_DISABLED;
		if (queue->flags & RK_RING_ENABLED)
			slot->verdict = make_frame(queue, heads[i], pool, frame);
		slot->has_frame = slot->verdict == RK_SENT;
		if (!slot->has_frame)
			continue;
		burst->frame_count++;
		if (frame->segment_count > RK_SEGMENTS_MAX) {
			flatten(queue, frame);
			return; /* there is one bounce buffer */
		}
		pool += frame->segment_count;
	}
}

/* Returns the chains of the frames the port took, and of what was dropped between them, in order. */
static uint32_t complete(struct rk_queue *queue, const struct burst *burst, uint32_t taken)
{
	struct rk_direction_stats *stats = queue->stats;
	uint64_t packets = 0, bytes = 0;
	uint32_t frame = 0, i;

	for (i = 0; i < burst->chains; i++) {
		const struct slot *slot = &burst->slots[i];
		uint32_t verdict = slot->verdict;

		if (slot->has_frame) {
			if (frame == taken)
				break;
			verdict = burst->frames[frame].verdict;
			if (verdict == RK_SENT) {
				packets++;
				bytes += burst->frames[frame].bytes;
			}
			frame++;
		}
		if (verdict != RK_SENT)
			stats->drops[verdict]++;
		queue_put_used(queue, slot->head, 0);
	}
	stats->packets += packets;
	stats->bytes += bytes;
	return i;
}

/* ---- ports that hold frames ------------------------------------------------------------------- */

/* Takes the chains of the frames the port took, and of what was dropped between them, off the ring. */
static uint32_t take(struct rk_queue *queue, const struct burst *burst, uint32_t taken)
{
	uint32_t frame = 0, i;

	for (i = 0; i < burst->chains; i++) {
		const struct slot *slot = &burst->slots[i];
		struct in_flight *chain = &queue->in_flight[queue->next & queue->mask];

		*chain = (struct in_flight){.head = slot->head, .verdict = slot->verdict};
		if (slot->has_frame) {
			if (frame == taken)
				break;
			chain->verdict = burst->frames[frame].verdict;
			chain->bytes = burst->frames[frame].bytes;
			chain->held = chain->verdict == RK_HELD;
			if (chain->held)
				chain->verdict = RK_SENT;
			frame++;
		}
		queue->next++;
	}
	return i;
}

/* Returns chains in order, up to the first that is held beyond the next `done` held ones. */
static uint32_t release(struct rk_queue *queue, uint32_t done)
{
	struct rk_direction_stats *stats = queue->stats;
	uint32_t released = 0;

	while (queue_in_flight(queue)) {
		const struct in_flight *chain = &queue->in_flight[queue->used_next & queue->mask];

		if (chain->held && done-- == 0)
			break;
		if (chain->verdict == RK_SENT) {
			stats->packets++;
			stats->bytes += chain->bytes;
		} else {
			stats->drops[chain->verdict]++;
		}
		if (queue->fault == RK_FAULT_NONE)
			queue_return(queue, chain->head, 0);
		else
			queue->used_next++; /* a quarantined ring is not written */
		released++;
	}
	return released;
}

static uint32_t dequeue_held_turn(struct rk_queue *queue, struct rk_port *port, uint32_t limit)
{
	const uint64_t start = cycles_now();
	const uint16_t before = queue->used_next;
	uint32_t done = release(queue, port->ops->reclaim(port));
	uint32_t count, took = 0;

	/* Before the ring can turn out to be broken: these are VM1's. */
	if (done)
		queue_publish(queue, before);
	count = queue_available(queue);
	if (count) {
		const uint16_t then = queue->used_next;
		struct burst burst;
		uint32_t taken = 0, at_once;

		queue->walked = 0;
		parse(queue, count < limit ? count : limit, &burst);
		if (burst.frame_count)
			taken = port->ops->tx(port, burst.frames, burst.frame_count);
		took = take(queue, &burst, taken);
		at_once = release(queue, 0);
		if (at_once)
			queue_publish(queue, then);
		done += at_once;
		/* Quarantined, a ring is not written any more: first let those before it go back. */
		if (burst.bad_head && took == burst.chains && !queue_in_flight(queue))
			queue->fault = RK_FAULT_BAD_HEAD;
	}
	if (done || took) {
		queue->stats->bursts++;
		queue->stats->cycles += cycles_now() - start;
	}
	return done > took ? done : took;
}

uint32_t dequeue_drain(struct rk_queue *queue, struct rk_port *port)
{
	const uint16_t before = queue->used_next;

	if (release(queue, port->ops->reclaim(port)) && queue->fault == RK_FAULT_NONE)
		queue_publish(queue, before);
	return queue_in_flight(queue);
}

void rk_queue_abandon(struct rk_queue *queue)
{
	const uint16_t before = queue->used_next;

	for (uint16_t at = queue->used_next; at != queue->next; at++) {
		struct in_flight *chain = &queue->in_flight[at & queue->mask];

		if (chain->held)
			chain->verdict = RK_DROP_VF_ERROR;
		chain->held = false;
	}
	if (release(queue, 0) && queue->fault == RK_FAULT_NONE)
		queue_publish(queue, before);
}

/* ---- one turn --------------------------------------------------------------------------------- */

uint32_t dequeue_turn(struct rk_queue *queue, struct rk_port *port, uint32_t limit)
{
	uint32_t count, done, taken = 0;
	uint16_t before = queue->used_next;
	struct burst burst;
	uint64_t start;

	if (port->ops->reclaim)
		return dequeue_held_turn(queue, port, limit);
	count = queue_available(queue);
	if (count == 0)
		return 0;
	start = cycles_now();
	queue->walked = 0;
	parse(queue, count < limit ? count : limit, &burst);
	if (burst.frame_count)
		taken = port->ops->tx(port, burst.frames, burst.frame_count);
	done = complete(queue, &burst, taken);
	if (burst.bad_head && done == burst.chains)
		queue->fault = RK_FAULT_BAD_HEAD;
	if (done) {
		queue_publish(queue, before);
		queue->stats->bursts++;
		queue->stats->cycles += cycles_now() - start;
	}
	return done;
}
