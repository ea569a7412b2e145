/* SPDX-License-Identifier: BSD-3-Clause */
/* VM1 transmits: available chains become frames, the port takes them, the chains are returned. */
#include "split.h"

#define ETHERNET_HEADER_BYTES 14u

/* What became of each chain of the burst, in ring order. */
struct slot {
	struct head head;
	uint32_t verdict; /* enum rk_drop. RK_SENT: it has a frame */
};

struct burst {
	uint32_t chains, frame_count;
	bool bad_head; /* the entry after the last chain names no descriptor */
	struct slot slots[RK_BURST_MAX];
	struct rk_frame frames[RK_BURST_MAX];
};

static inline void set_frame(struct rk_frame *frame, struct iovec *segments, uint32_t count,
			     uint32_t bytes)
{
	*frame = (struct rk_frame){
		.segments = segments, .segment_count = count, .bytes = bytes, .verdict = RK_SENT};
}

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
static enum rk_drop make_frame(struct rk_queue *queue, struct head *head, struct iovec *pool,
			       struct rk_frame *frame)
{
	struct chain chain = {.segments = pool, .skip = queue->header_bytes};
	enum rk_drop verdict = chain_walk(queue, head, RK_READ, &chain);

	if (verdict != RK_SENT)
		return verdict;
	if (chain.bytes < queue->header_bytes + ETHERNET_HEADER_BYTES)
		return RK_DROP_RUNT;
	set_frame(frame, pool, chain.count, (uint32_t)chain.bytes - queue->header_bytes);
	return RK_SENT;
}

/*
 * The frame of a plain chain, as most are: one readable descriptor with header and frame, all of it in the
 * region near. False of any other, of which nothing is decided here: chain_walk() looks at it anew.
 */
static inline bool plain_frame(const struct rk_queue *queue, const struct rk_region *near,
			       uint16_t id, struct iovec *segment, struct rk_frame *frame)
{
	struct shm *desc = split_desc(queue, id);
	const uint64_t offset = shm_load64(desc) - near->bus;
	const uint64_t rest = shm_load64(shm_at(desc, 8));
	const uint32_t length = (uint32_t)rest;
	const uint32_t bytes = length - queue->header_bytes;

	if ((uint16_t)(rest >> 32) != 0 || length < queue->header_bytes + ETHERNET_HEADER_BYTES ||
	    bytes > RK_FRAME_MAX || offset >= near->length || length > near->length - offset)
		return false;
	segment->iov_base = (void *)(uintptr_t)(near->host + offset + queue->header_bytes);
	segment->iov_len = bytes;
	set_frame(frame, segment, 1, bytes);
	return true;
}

/* Where plain chains are looked for: the region of the last buffer, as long as VM1 lets it be read. */
static inline struct rk_region readable_hint(const struct rk_queue *queue)
{
	if (queue->hint && queue->hint->permission & RK_READ)
		return *queue->hint;
	return (struct rk_region){.length = 0};
}

static void parse(struct rk_queue *queue, const struct place *place, uint32_t count, bool fetch,
		  struct burst *burst)
{
	struct rk_region near = readable_hint(queue);
	struct iovec *pool = queue->segments;
	uint16_t ids[RK_BURST_MAX];

	burst->chains = 0;
	burst->frame_count = 0;
	burst->bad_head = false;
	split_heads(queue, place, ids, count);
	for (uint32_t i = 0; i < count; i++)
		shm_prefetch(split_desc(queue, ids[i]));
	for (uint32_t i = 0; i < count && queue->walked < TURN_WALK_MAX; i++) {
		struct slot *slot = &burst->slots[i];
		struct rk_frame *frame = &burst->frames[burst->frame_count];

		if (ids[i] >= queue->size) {
			burst->bad_head = true;
			return;
		}
		burst->chains++;
		*slot = (struct slot){{ids[i], 1}, RK_SENT};
		if (!(queue->flags & RK_RING_ENABLED)) {
			slot->verdict = RK_DROP_DISABLED;
			continue;
		}
		if (plain_frame(queue, &near, ids[i], pool, frame)) {
			queue->walked++;
		} else {
			slot->verdict = make_frame(queue, &slot->head, pool, frame);
			if (slot->verdict != RK_SENT)
				continue;
			near = readable_hint(queue);
		}
		burst->frame_count++;
		if (frame->segment_count > RK_SEGMENTS_MAX) {
			flatten(queue, frame);
			return; /* there is one bounce buffer */
		}
		if (fetch)
			shm_prefetch_frame(pool->iov_base, pool->iov_len);
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

		if (verdict == RK_SENT) {
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
		split_return(queue, slot->head.id, 0);
	}
	queue->next += (uint16_t)i;
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
		struct in_flight chain = {.head = slot->head, .verdict = slot->verdict};

		if (chain.verdict == RK_SENT) {
			if (frame == taken)
				break;
			chain.verdict = burst->frames[frame].verdict;
			chain.bytes = burst->frames[frame].bytes;
			chain.held = chain.verdict == RK_HELD;
			if (chain.held)
				chain.verdict = RK_SENT;
			frame++;
		}
		queue->in_flight[(queue->flight + queue->flying++) & queue->flight_mask] = chain;
		queue->next += chain.head.span;
	}
	return i;
}

/* Returns chains in order, up to the first that is held beyond the next `done` held ones. */
static uint32_t release(struct rk_queue *queue, uint32_t done)
{
	struct rk_direction_stats *stats = queue->stats;
	uint32_t released = 0;

	while (queue->flying) {
		const struct in_flight *chain = &queue->in_flight[queue->flight & queue->flight_mask];

		if (chain->held && done-- == 0)
			break;
		if (chain->verdict == RK_SENT) {
			stats->packets++;
			stats->bytes += chain->bytes;
		} else {
			stats->drops[chain->verdict]++;
		}
		if (queue->fault == RK_FAULT_NONE) /* a quarantined ring is not written */
			split_return(queue, chain->head.id, 0);
		queue->flight++;
		queue->flying--;
		released++;
	}
	return released;
}

static uint32_t dequeue_held_turn(struct rk_queue *queue, struct rk_port *port, uint32_t limit)
{
	const uint64_t start = cycles_now();
	uint32_t done = release(queue, port->ops->reclaim(port));
	uint32_t took = 0;
	struct place place;

	/* Before the ring can turn out to be broken: these are VM1's. */
	if (done)
		queue_publish(queue);
	place = split_place(queue);
	if (place.left) {
		struct burst burst;
		uint32_t taken = 0, at_once;

		queue->walked = 0;
		parse(queue, &place, place.left < limit ? place.left : limit, port->reads, &burst);
		if (burst.frame_count)
			taken = port->ops->tx(port, burst.frames, burst.frame_count);
		took = take(queue, &burst, taken);
		at_once = release(queue, 0);
		if (at_once)
			queue_publish(queue);
		done += at_once;
		/* Quarantined, a ring is not written any more: first let those before it go back. */
		if (burst.bad_head && took == burst.chains && !queue->flying)
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
	if (release(queue, port->ops->reclaim(port)) && queue->fault == RK_FAULT_NONE)
		queue_publish(queue);
	return queue->flying;
}

void rk_queue_abandon(struct rk_queue *queue)
{
	for (uint32_t i = 0; i < queue->flying; i++) {
		struct in_flight *chain =
			&queue->in_flight[(queue->flight + i) & queue->flight_mask];

		if (chain->held)
			chain->verdict = RK_DROP_VF_ERROR;
		chain->held = false;
	}
	if (release(queue, 0) && queue->fault == RK_FAULT_NONE)
		queue_publish(queue);
}

/* ---- one turn --------------------------------------------------------------------------------- */

uint32_t dequeue_turn(struct rk_queue *queue, struct rk_port *port, uint32_t limit)
{
	uint32_t done, taken = 0;
	struct place place;
	struct burst burst;
	uint64_t start;

	if (port->ops->reclaim)
		return dequeue_held_turn(queue, port, limit);
	place = split_place(queue);
	if (place.left == 0)
		return 0;
	start = cycles_now();
	queue->walked = 0;
	parse(queue, &place, place.left < limit ? place.left : limit, port->reads, &burst);
	split_prefetch_used(queue, burst.chains);
	if (burst.frame_count)
		taken = port->ops->tx(port, burst.frames, burst.frame_count);
	done = complete(queue, &burst, taken);
	if (burst.bad_head && done == burst.chains)
		queue->fault = RK_FAULT_BAD_HEAD;
	if (done) {
		queue_publish(queue);
		queue->stats->bursts++;
		queue->stats->cycles += cycles_now() - start;
	}
	return done;
}
