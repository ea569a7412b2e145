/* SPDX-License-Identifier: BSD-3-Clause */
/* VM1 receives: frames of the port go into available chains; what cannot hold one is returned empty. */
#include "ahead.h"
#include "dirty.h"
#include "mtu.h"
#include "plain_targets.h"
#include "writer.h"

/* One turn's view of the ring. */
struct turn {
	struct rk_queue *queue;
	struct place place; /* of the first chain not yet consumed */
	uint32_t done;      /* chains completed */
	uint32_t burst;     /* no frame is begun when as many are done */
	bool offloads;      /* frames may have them */
	uint32_t flush;     /* of the frames, which are a VM1's: flush.h */
};

/* The chains taken for the frame at hand: queue->gathered[0..chains), not yet consumed. */
struct gathering {
	uint32_t chains;
	uint32_t span; /* of them all */
	uint32_t own;  /* descriptors of the ring that they take */
	uint32_t segments;
	uint64_t capacity;
};

enum outcome {
	FRAME_TAKEN, /* written or dropped */
	FRAME_WAITS, /* for buffers */
};

/* 5.1.6.4.1: flags and gso_type are of what was negotiated, else 0; num_buffers is exact. */
static inline void make_header(uint8_t *header, const struct rk_offload *offload, uint16_t buffers)
{
	memcpy(header, offload, HEADER_BEFORE_BUFFERS);
	memcpy(header + HEADER_BEFORE_BUFFERS, &buffers, sizeof(buffers));
}

/* ---- plain chains ----------------------------------------------------------------------------------- */

/* Writes n frames where plain chains want them; returns their bytes. Compiled once with neither offloads nor flushing. */
static inline uint64_t write_run(const struct rk_queue *queue, const struct rk_frame *frames,
				 uint32_t n, struct shm *const *targets, uint32_t *lengths,
				 const bool offloads, const uint32_t flush)
{
	uint8_t header[HEADER_BYTES_MAX];
	uint64_t bytes = 0;

	make_header(header, &(struct rk_offload){0}, 1);
	for (uint32_t i = 0; i < n; i++) {
		if (offloads)
			make_header(header, &frames[i].offload, 1);
		write_plain(&frames[i], header, queue->header_bytes, targets[i], flush);
		lengths[i] = queue->header_bytes + frames[i].bytes;
		bytes += frames[i].bytes;
	}
	return bytes;
}

/* Writes the first of count frames into plain chains; returns how many there were. */
static uint32_t place_plain(struct turn *turn, const struct rk_frame *frames, uint32_t count)
{
	struct rk_queue *queue = turn->queue;
	struct shm *targets[RK_BURST_MAX];
	struct head heads[RK_BURST_MAX];
	struct packed_desc descs[LAYOUT_PACKED ? RK_BURST_MAX : 1];
	uint32_t lengths[RK_BURST_MAX];
	uint64_t bytes;
	uint32_t n;

	if (!queue->plain)
		return 0;
	/* Frames done in software may be more than were asked for. */
	if (count > turn->place.left)
		count = turn->place.left;
	if (count > turn->burst)
		count = turn->burst;
	if (queue->frame_bytes_max != UINT32_MAX)
		count = mtu_run(queue, frames, count);
	if (count == 0)
		return 0;
	if (LAYOUT_PACKED) {
		count = packed_plain(queue, &turn->place, DESC_WRITE, count, descs, heads);
	} else {
		count = split_heads(queue, &turn->place, heads, count);
		split_prefetch_used(queue, count);
	}
	n = plain_targets(queue, frames, heads, descs, count, targets);
	if (turn->flush)
		bytes = write_run(queue, frames, n, targets, lengths, turn->offloads, turn->flush);
	else if (turn->offloads)
		bytes = write_run(queue, frames, n, targets, lengths, true, FLUSH_NOTHING);
	else
		bytes = write_run(queue, frames, n, targets, lengths, false, FLUSH_NOTHING);
	if (__builtin_expect(queue->dirty != NULL, false))
		dirty_mark_all(queue, targets, lengths, n);
	ring_return_run(queue, heads, lengths, n);
	queue->next = queue->used_next;
	queue->walked += n;
	queue->stats->packets += n;
	queue->stats->bytes += bytes;
	turn->place = ring_after(queue, turn->place, n);
	turn->done += n;
	return n;
}

/* ---- any chain -------------------------------------------------------------------------------- */

static inline void write_frame(struct rk_queue *queue, const struct rk_frame *frame,
			       uint16_t buffers)
{
	struct writer to = {.segment = queue->segments};
	uint8_t header[HEADER_BYTES_MAX];

	make_header(header, &frame->offload, buffers);
	write_out(&to, header, queue->header_bytes);
	for (uint32_t i = 0; i < frame->segment_count; i++)
		write_out(&to, frame->segments[i].iov_base, frame->segments[i].iov_len);
}

/* Consumes the gathered chains, bytes in all written to them. */
static void consume(struct turn *turn, struct gathering *have, uint64_t bytes)
{
	const bool frame = bytes != 0;

	for (uint32_t i = 0; i < have->chains; i++) {
		const struct gathered *chain = &turn->queue->gathered[i];
		uint64_t part = bytes < chain->capacity ? bytes : chain->capacity;

		ring_return(turn->queue, chain->head, (uint32_t)part,
			    frame && i + 1 < have->chains);
		bytes -= part;
	}
	turn->queue->next = turn->queue->used_next;
	turn->place = ring_after(turn->queue, turn->place, have->span);
	turn->done += have->chains;
	*have = (struct gathering){0};
}

static enum outcome drop_frame(struct turn *turn, struct gathering *have)
{
	consume(turn, have, 0);
	turn->queue->stats->drops[RK_DROP_SMALL_BUFFER]++;
	return FRAME_TAKEN;
}

/* Takes one more chain; a faulty one is returned empty, and in order, so with all before it. False if
 * there is none. */
static inline bool gather_one(struct turn *turn, struct gathering *have)
{
	struct rk_queue *queue = turn->queue;
	const struct place place = ring_after(queue, turn->place, have->span);
	struct chain chain = {.segments = queue->segments + have->segments};
	struct head head;
	const enum look look = ring_look(queue, &place, RK_WRITE, &chain, &head);

	if (look != LOOK_CHAIN) {
		if (look == LOOK_FAULT)
			queue->fault = RING_FAULT;
		return false;
	}
	if (__builtin_expect(chain.verdict == CHAIN_MISSING, false)) {
		queue->fault = RK_FAULT_MISSING;
		look_ahead(queue, place, queue->segments, RK_MISSES_MAX, RK_WRITE);
		return false;
	}
	queue->gathered[have->chains++] = (struct gathered){head, chain.bytes};
	have->span += head.span;
	if (chain.verdict != RK_SENT) {
		consume(turn, have, 0);
		queue->stats->drops[chain.verdict]++;
		return true;
	}
	have->own += chain.own;
	have->segments += chain.count;
	have->capacity += chain.bytes;
	return true;
}

/*
 * Puts one frame into the next chain, or, mergeable, into as many as it needs (5.1.6.4). A frame
 * that the next chain cannot hold, or that chains of all the ring's descriptors cannot, is dropped with
 * those chains returned: VM1 gets them back and may post larger ones, so nothing is stuck. One over the
 * MTU takes none.
 */
static enum outcome place_any(struct turn *turn, const struct rk_frame *frame)
{
	struct rk_queue *queue = turn->queue;
	const uint64_t need = (uint64_t)queue->header_bytes + frame->bytes;
	const bool mergeable = queue->flags & RK_RING_MERGEABLE;
	const uint32_t walk_end = queue->walked + GATHER_WALK_MAX;
	struct gathering have = {0};

	if (over_mtu(queue, frame)) {
		if (ring_place(queue).left == 0)
			return FRAME_WAITS;
		queue->stats->drops[RK_DROP_OVER_MTU]++;
		return FRAME_TAKEN;
	}
	while (have.capacity < need) {
		if (have.chains && !mergeable)
			return drop_frame(turn, &have);
		if (have.chains == 0 &&
		    (turn->done >= turn->burst || queue->walked >= TURN_WALK_MAX))
			return FRAME_WAITS;
		if (have.own >= queue->size || queue->walked >= walk_end ||
		    have.segments + queue->chain_segments > queue->segments_max)
			return drop_frame(turn, &have);
		if (!gather_one(turn, &have))
			return FRAME_WAITS;
	}
	write_frame(queue, frame, (uint16_t)have.chains);
	if (queue->dirty)
		dirty_mark_segments(queue, queue->segments, need);
	consume(turn, &have, need);
	queue->stats->packets++;
	queue->stats->bytes += frame->bytes;
	return FRAME_TAKEN;
}

/* ---- one turn --------------------------------------------------------------------------------- */

/* Puts frames into the ring, in order; how many are done with. */
static __attribute__((noinline)) uint32_t place(struct turn *turn, const struct rk_frame *frames,
						uint32_t count)
{
	uint32_t frame = place_plain(turn, frames, count);

	while (frame < count && place_any(turn, &frames[frame]) == FRAME_TAKEN)
		frame++;
	return frame;
}

/* Judges the frame's offload; whether VM1 can be given the frame as it is. */
static bool judge(const struct rk_queue *queue, struct rk_frame *frame)
{
	struct rk_offload *offload = &frame->offload;

	if (offload_plain(frame))
		return true;
	frame->verdict = offload_judge(frame, RK_RING_OFFLOADS);
	if (!(queue->flags & RK_RING_CSUM))
		offload->flags &= (uint8_t)~RK_OFFLOAD_DATA_VALID;
	frame->done_here = (offload_needs(offload) & ~queue->flags) != 0;
	return frame->verdict == RK_SENT && !frame->done_here;
}

/* As place(), of a port whose frames have offloads; they are done in software where VM1 takes none. */
static __attribute__((noinline)) uint32_t place_judged(struct turn *turn, const struct rk_port *port,
						       struct rk_frame *frames, uint32_t count)
{
	struct rk_queue *queue = turn->queue;
	struct expansion *expansion = queue->expansion;
	uint32_t asked = 0, done;
	bool as_they_are = true;

	for (uint32_t i = 0; i < count; i++)
		asked |= frames[i].offload.flags | frames[i].offload.gso_type;
	turn->offloads = asked;
	for (uint32_t i = 0; asked && i < count; i++)
		as_they_are &= judge(queue, &frames[i]);
	if (as_they_are)
		return place(turn, frames, count);
	/* Several ports may share a ring: the frame that VM1 has a part of goes on before another's. */
	if (expansion->begun && expansion->port != port)
		return 0;
	expansion->port = port;
	expansion_make(expansion, frames, count);
	done = place(turn, expansion->frames, expansion->count);
	done = expansion_take(expansion, frames, done);
	for (uint32_t i = 0; i < done; i++)
		if (frames[i].verdict != RK_SENT)
			queue->stats->drops[frames[i].verdict]++;
	return done;
}

static void finish(const struct turn *turn)
{
	struct rk_queue *queue = turn->queue;

	queue_publish(queue);
	queue->stats->bursts++;
	if (queue->flush.level)
		queue->stats->flushed += turn->done;
}

/* The frames may lie in another VM1's memory: their bytes are copied, once, and nothing is decided by them. */
uint32_t LAYOUT(enqueue_frames)(struct rk_queue *queue, const struct rk_frame *frames,
				uint32_t count, uint32_t flush)
{
	struct turn turn = {.queue = queue, .burst = UINT32_MAX, .flush = flush};
	uint32_t asked = 0, done;

	turn.place = ring_place(queue);
	if (turn.place.left == 0)
		return 0;
	/* Both rings' lines together: either by itself may gain nothing while the others are waited for. */
	queue->flush.level = (uint8_t)flush;
	for (uint32_t i = 0; i < count; i++)
		asked |= frames[i].offload.flags | frames[i].offload.gso_type;
	turn.offloads = asked;
	queue->walked = 0;
	done = place(&turn, frames, count);
	if (turn.done)
		finish(&turn);
	return done;
}

uint32_t LAYOUT(enqueue_turn)(struct rk_queue *queue, struct rk_port *port, struct place first,
			      uint32_t burst, uint64_t *clock)
{
	struct turn turn = {
		.queue = queue, .place = first, .burst = burst, .offloads = port->offloads};
	struct rk_frame frames[RK_BURST_MAX];
	uint32_t count, done;

	count = port->ops->rx(port, frames, first.left < burst ? first.left : burst);
	if (count == 0)
		return 0;
	queue->walked = 0;
	done = turn.offloads ? place_judged(&turn, port, frames, count) : place(&turn, frames, count);
	queue->waiting = done < count;
	if (done)
		port->ops->rx_done(port, done);
	if (turn.done) {
		finish(&turn);
		flush_count(&queue->flush, turn.done, cycles_now);
		queue->stats->cycles += clock_lap(clock);
	}
	return turn.done ? turn.done : done; /* frames may go without a chain: there may be more */
}
