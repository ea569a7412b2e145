/* SPDX-License-Identifier: BSD-3-Clause */
/* VM1 transmits: available chains become frames, the port takes them, the chains are returned. */
#include "ahead.h"
#include "plain_frames.h"

/* Chains in ring order. Those whose verdict is RK_SENT have a frame, in the same order. */
struct burst {
	uint32_t chains, frame_count;
	uint32_t fault; /* enum rk_fault: what stands after the last chain */
	struct head heads[RK_BURST_MAX];
	uint32_t verdicts[RK_BURST_MAX]; /* enum rk_drop */
	struct rk_frame frames[RK_BURST_MAX];
};

/* Makes the frame of a chain that was found good. */
static enum rk_drop make_frame(const struct rk_queue *queue, const struct chain *chain,
			       struct rk_frame *frame)
{
	if (chain->bytes < queue->header_bytes + ETHERNET_HEADER_BYTES)
		return RK_DROP_RUNT;
	set_frame(frame, chain->segments, chain->count,
		  (uint32_t)chain->bytes - queue->header_bytes);
	if (queue->flags & RK_RING_OFFLOADS) {
		memcpy(&frame->offload, queue->header, sizeof(frame->offload));
		frame->header_read = true;
	}
	return RK_SENT;
}

/* The burst as it is made: of `count` chains at most. */
struct parsing {
	struct burst *burst;
	struct iovec *pool; /* its unused tail */
	struct place place; /* of the next chain */
	uint32_t count;
	uint32_t sound; /* split: as of split_heads() */
	bool fetch; /* the port reads the frames by this core */
};

/* Of a packed ring: lines of descriptors that are VM1's again to their end, from a place on. */
static void flush_returned(const struct rk_queue *queue, uint32_t from)
{
	const uint32_t count = packed_distance(queue, from, queue->used_shown);

	for (uint32_t i = 0; i < count; i++) {
		const struct shm *desc = packed_desc(queue, packed_after(queue, from, i));

		if (ends_line(desc))
			shm_flush(desc);
	}
}

/* Publishes the chains that were returned. */
static void show(struct rk_queue *queue, uint32_t chains)
{
	const uint32_t from = queue->used_shown;

	queue_publish(queue);
	if (queue->flush.level) {
		queue->stats->flushed += chains;
		if (LAYOUT_PACKED)
			flush_returned(queue, from);
	}
	flush_count(&queue->flush, chains, cycles_now);
}

static void parse_plain(struct rk_queue *queue, struct parsing *parsing)
{
	struct burst *burst = parsing->burst;
	const uint32_t left = parsing->count - burst->chains;
	const uint32_t walk = TURN_WALK_MAX - queue->walked;
	struct head *heads = &burst->heads[burst->chains];
	struct packed_desc descs[LAYOUT_PACKED ? RK_BURST_MAX : 1];
	uint32_t n = left < walk ? left : walk;

	if (LAYOUT_PACKED)
		n = packed_plain(queue, &parsing->place, 0, n, descs, heads);
	else if (n > parsing->sound - burst->chains)
		n = parsing->sound - burst->chains;
	n = plain_frames(queue, heads, descs, n, &burst->frames[burst->frame_count],
			 parsing->pool);

	for (uint32_t i = 0; parsing->fetch && i < n; i++)
		shm_prefetch_frame(parsing->pool[i].iov_base, parsing->pool[i].iov_len);
	queue->walked += n;
	burst->chains += n;
	burst->frame_count += n;
	parsing->pool += n;
	parsing->place = ring_after(queue, parsing->place, n);
}

/* The next chain, its verdict in chain: of a packed ring; of a split one, whose heads are read. */
static inline enum look look_any(struct rk_queue *queue, const struct place *place,
				 struct head *head, struct chain *chain)
{
	const bool enabled = queue->flags & RK_RING_ENABLED;

	if (LAYOUT_PACKED)
		return packed_look(queue, place, enabled ? RK_READ : 0, chain, head);
	if (head->id >= queue->size)
		return LOOK_FAULT;
	if (enabled)
		chain->verdict = chain_walk(queue, head, RK_READ, chain);
	return LOOK_CHAIN;
}

/* Looks at one chain of any kind; false if the burst ends with it, or before it. */
static bool parse_any(struct rk_queue *queue, struct parsing *parsing)
{
	struct burst *burst = parsing->burst;
	struct rk_frame *frame = &burst->frames[burst->frame_count];
	struct head *head = &burst->heads[burst->chains];
	struct chain chain = {.segments = parsing->pool,
			      .skip = queue->header_bytes,
			      .verdict = RK_DROP_DISABLED};
	const enum look look = look_any(queue, &parsing->place, head, &chain);
	enum rk_drop verdict = chain.verdict;

	if (look != LOOK_CHAIN) {
		if (look == LOOK_FAULT)
			burst->fault = RING_FAULT;
		return false;
	}
	if (verdict == RK_SENT)
		verdict = make_frame(queue, &chain, frame);
	if (__builtin_expect((uint32_t)verdict == CHAIN_MISSING, false)) {
		burst->fault = RK_FAULT_MISSING;
		look_ahead(queue, parsing->place, parsing->pool, parsing->count - burst->chains,
			   RK_READ);
		return false;
	}
	burst->verdicts[burst->chains++] = verdict;
	parsing->place = ring_after(queue, parsing->place, head->span);
	if (verdict != RK_SENT)
		return true;
	burst->frame_count++;
	if (frame->segment_count > RK_SEGMENTS_MAX) {
		send_flatten(queue, frame);
		return false; /* there is one bounce buffer */
	}
	parsing->pool += frame->segment_count;
	return true;
}

static void parse(struct rk_queue *queue, const struct place *place, uint32_t count, bool fetch,
		  struct burst *burst)
{
	struct parsing parsing = {burst, queue->segments, *place, count, 0, fetch};

	burst->chains = 0;
	burst->frame_count = 0;
	burst->fault = RK_FAULT_NONE;
	if (!LAYOUT_PACKED)
		parsing.sound = split_heads(queue, place, burst->heads, count);
	memset(burst->verdicts, 0, count * sizeof(burst->verdicts[0])); /* RK_SENT */
	while (burst->chains < count && queue->walked < TURN_WALK_MAX) {
		if (queue->plain)
			parse_plain(queue, &parsing);
		if (burst->chains < count && queue->walked < TURN_WALK_MAX &&
		    !parse_any(queue, &parsing))
			break;
	}
}

/* Whether all chains of the burst have frames, and the port sent all of those it took. */
static inline bool all_sent(const struct burst *burst, uint32_t taken, uint64_t *bytes)
{
	uint32_t verdicts = 0;

	if (burst->frame_count != burst->chains)
		return false;
	*bytes = 0;
	for (uint32_t i = 0; i < taken; i++) {
		verdicts |= burst->frames[i].verdict;
		*bytes += burst->frames[i].bytes;
	}
	return verdicts == RK_SENT;
}

/* Gives the burst's frames to the port; how many it is done with. */
static uint32_t give(struct rk_queue *queue, struct rk_port *port, struct burst *burst)
{
	if (burst->chains && burst->verdicts[0] != RK_SENT)
		expansion_forget(queue->expansion); /* VM1 has changed the chain at hand */
	if (burst->frame_count == 0)
		return 0;
	/* 5.1.6.2.2: else the headers say nothing. */
	port->flush = queue->flush.level;
	if (queue->flags & RK_RING_OFFLOADS)
		return send_judged(queue, port, burst->frames, burst->frame_count);
	return port->ops->tx(port, burst->frames, burst->frame_count);
}

/* Returns the chains of the frames the port took, and of what was dropped between them, in order. */
static uint32_t complete(struct rk_queue *queue, const struct burst *burst, uint32_t taken)
{
	struct rk_direction_stats *stats = queue->stats;
	uint32_t frame = 0, i;
	uint64_t bytes;

	if (all_sent(burst, taken, &bytes)) {
		ring_return_read_run(queue, burst->heads, taken);
		queue->next = queue->used_next;
		stats->packets += taken;
		stats->bytes += bytes;
		return taken;
	}
	for (i = 0; i < burst->chains; i++) {
		uint32_t verdict = burst->verdicts[i];

		if (verdict == RK_SENT) {
			if (frame == taken)
				break;
			verdict = burst->frames[frame].verdict;
			if (verdict == RK_SENT) {
				stats->packets++;
				stats->bytes += burst->frames[frame].bytes;
			}
			frame++;
		}
		if (verdict != RK_SENT)
			stats->drops[verdict]++;
		ring_return_read(queue, &burst->heads[i]);
	}
	queue->next = queue->used_next;
	return i;
}

/* ---- ports that hold frames ------------------------------------------------------------------- */

/* Takes the chains of the frames the port took, and of what was dropped between them, off the ring. */
static uint32_t take(struct rk_queue *queue, const struct burst *burst, uint32_t taken)
{
	const struct place from = {.next = queue->next};
	uint32_t frame = 0, span = 0, i;

	for (i = 0; i < burst->chains; i++) {
		struct in_flight chain = {.head = burst->heads[i], .verdict = burst->verdicts[i]};

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
		span += chain.head.span;
	}
	queue->next = ring_after(queue, from, span).next;
	return i;
}

/* Of release(): so many at most that a packed ring's go back together. */
static uint32_t release_some(struct rk_queue *queue, uint32_t *done)
{
	const bool writes = queue->fault == RK_FAULT_NONE; /* a quarantined ring is not written */
	struct rk_direction_stats *stats = queue->stats;
	struct head heads[LAYOUT_PACKED ? RK_BURST_MAX : 1];
	uint32_t n;

	for (n = 0; queue->flying && n < RK_BURST_MAX; n++) {
		const struct in_flight *chain = &queue->in_flight[queue->flight & queue->flight_mask];

		if (chain->held && (*done)-- == 0)
			break;
		if (chain->verdict == RK_SENT) {
			stats->packets++;
			stats->bytes += chain->bytes;
		} else {
			stats->drops[chain->verdict]++;
		}
		if (LAYOUT_PACKED)
			heads[n] = chain->head;
		else if (writes)
			ring_return_read(queue, &chain->head);
		queue->flight++;
		queue->flying--;
	}
	if (LAYOUT_PACKED && writes)
		ring_return_read_run(queue, heads, n);
	return n;
}

/* Returns chains in order, up to the first that is held beyond the next `done` held ones. */
static uint32_t release(struct rk_queue *queue, uint32_t done)
{
	uint32_t released = 0, n;

	do {
		n = release_some(queue, &done);
		released += n;
	} while (n == RK_BURST_MAX);
	return released;
}

uint32_t LAYOUT(dequeue_held_turn)(struct rk_queue *queue, struct rk_port *port, uint32_t limit,
				   uint64_t *clock)
{
	uint32_t done = release(queue, port->ops->reclaim(port));
	uint32_t took = 0;
	struct place place;

	/* Before the ring can turn out to be broken: these are VM1's. */
	if (done)
		show(queue, done);
	place = ring_place(queue);
	if (place.left) {
		struct burst burst;
		uint32_t taken, at_once;

		queue->walked = 0;
		parse(queue, &place, place.left < limit ? place.left : limit,
		      port->reads && port->copy_below == UINT32_MAX, &burst);
		taken = give(queue, port, &burst);
		took = take(queue, &burst, taken);
		queue->waiting = took < burst.chains;
		at_once = release(queue, 0);
		if (at_once)
			show(queue, at_once);
		done += at_once;
		/* Quarantined, a ring is not written any more: first let those before it go back. */
		if (took == burst.chains && !queue->flying)
			queue->fault = burst.fault;
	}
	if (done || took) {
		queue->stats->bursts++;
		queue->stats->cycles += clock_lap(clock);
	}
	return done > took ? done : took;
}

uint32_t LAYOUT(dequeue_drain)(struct rk_queue *queue, struct rk_port *port)
{
	if (release(queue, port->ops->reclaim(port)) && queue->fault == RK_FAULT_NONE)
		queue_publish(queue);
	return queue->flying;
}

void LAYOUT(dequeue_abandon)(struct rk_queue *queue)
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

uint32_t LAYOUT(dequeue_turn)(struct rk_queue *queue, struct rk_port *port, struct place place,
			      uint32_t limit, uint64_t *clock)
{
	uint32_t done, taken;
	struct burst burst;

	queue->walked = 0;
	parse(queue, &place, place.left < limit ? place.left : limit, port->reads, &burst);
	if (!LAYOUT_PACKED)
		split_prefetch_used(queue, burst.chains);
	taken = give(queue, port, &burst);
	done = complete(queue, &burst, taken);
	queue->waiting = done < burst.chains;
	if (done == burst.chains)
		queue->fault = burst.fault;
	if (done) {
		show(queue, done);
		queue->stats->bursts++;
		queue->stats->cycles += clock_lap(clock);
	}
	return done;
}
