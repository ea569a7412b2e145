/* SPDX-License-Identifier: BSD-3-Clause */
/* VM1 receives: frames of the port go into available chains; what cannot hold one is returned empty. */
#include "queue.h"

#define NUM_BUFFERS_OFFSET 10u /* in struct virtio_net_hdr, 5.1.6 */
#define HEADER_BYTES_MAX 12u

/* One turn's view of the ring. */
struct turn {
	struct rk_queue *queue;
	uint32_t available; /* entries not yet consumed */
	uint32_t done;      /* chains completed */
	uint32_t burst;     /* no frame is begun when as many are done */
};

/* The chains taken for the frame at hand: queue->gathered[0..chains), not yet consumed. */
struct gathering {
	uint32_t chains;
	uint32_t segments;
	uint64_t capacity;
};

enum outcome {
	FRAME_TAKEN, /* written or dropped */
	FRAME_WAITS, /* for buffers */
};

/* Writes bytes into segments, front to back. */
struct writer {
	struct iovec *segment;
	size_t offset;
};

static inline void write_out(struct writer *to, const uint8_t *from, size_t bytes)
{
	while (bytes) {
		size_t room = to->segment->iov_len - to->offset;
		size_t part = bytes < room ? bytes : room;

		shm_copy_out(shm_at(to->segment->iov_base, to->offset), from, part);
		from += part;
		bytes -= part;
		to->offset += part;
		if (to->offset == to->segment->iov_len) {
			to->segment++;
			to->offset = 0;
		}
	}
}

static inline void write_frame(struct rk_queue *queue, const struct rk_frame *frame,
			       uint16_t buffers)
{
	struct writer to = {.segment = queue->segments};
	/* 5.1.6.4.1: no offload was negotiated, so flags and gso_type are 0; num_buffers is exact. */
	uint8_t header[HEADER_BYTES_MAX] = {0};

	memcpy(header + NUM_BUFFERS_OFFSET, &buffers, sizeof(buffers));
	write_out(&to, header, queue->header_bytes);
	for (uint32_t i = 0; i < frame->segment_count; i++)
		write_out(&to, frame->segments[i].iov_base, frame->segments[i].iov_len);
}

/* Consumes the gathered chains, bytes in all written to them. */
static void consume(struct turn *turn, struct gathering *have, uint64_t bytes)
{
	for (uint32_t i = 0; i < have->chains; i++) {
		const struct gathered *chain = &turn->queue->gathered[i];
		uint64_t part = bytes < chain->capacity ? bytes : chain->capacity;

		queue_put_used(turn->queue, chain->head, (uint32_t)part);
		bytes -= part;
	}
	turn->available -= have->chains;
	turn->done += have->chains;
	*have = (struct gathering){0};
}

static enum outcome drop_frame(struct turn *turn, struct gathering *have)
{
	consume(turn, have, 0);
	turn->queue->stats->drops[RK_DROP_SMALL_BUFFER]++;
	return FRAME_TAKEN;
}

/* Takes one more chain; a faulty one is returned empty, and in order, so with all before it. */
static inline void gather_one(struct turn *turn, struct gathering *have, uint16_t head)
{
	struct rk_queue *queue = turn->queue;
	struct chain chain = {.segments = queue->segments + have->segments};
	enum rk_drop verdict = chain_walk(queue, head, RK_WRITE, &chain);

	queue->gathered[have->chains] = (struct gathered){head, chain.bytes};
	have->chains++;
	if (verdict != RK_SENT) {
		consume(turn, have, 0);
		queue->stats->drops[verdict]++;
		return;
	}
	have->segments += chain.count;
	have->capacity += chain.bytes;
}

/*
 * Puts one frame into the next chain, or, mergeable, into as many as it needs (5.1.6.4). A frame
 * that the next chain cannot hold, or that the whole ring cannot hold, is dropped with those chains
 * returned: VM1 gets them back and may post larger ones, so nothing is stuck.
 */
static enum outcome place(struct turn *turn, const struct rk_frame *frame)
{
	struct rk_queue *queue = turn->queue;
	const uint64_t need = (uint64_t)queue->header_bytes + frame->bytes;
	const bool mergeable = queue->flags & RK_RING_MERGEABLE;
	const uint32_t walk_end = queue->walked + GATHER_WALK_MAX;
	struct gathering have = {0};

	while (have.capacity < need) {
		uint16_t head;

		if (have.chains && !mergeable)
			return drop_frame(turn, &have);
		if (have.chains == 0 &&
		    (turn->done >= turn->burst || queue->walked >= TURN_WALK_MAX))
			return FRAME_WAITS;
		if (have.chains == queue->size || queue->walked >= walk_end ||
		    have.segments + queue->chain_segments > queue->segments_max)
			return drop_frame(turn, &have);
		if (have.chains == turn->available)
			return FRAME_WAITS;
		head = queue_head(queue, have.chains);
		if (head >= queue->size) {
			queue->fault = RK_FAULT_BAD_HEAD;
			return FRAME_WAITS;
		}
		gather_one(turn, &have, head);
	}
	write_frame(queue, frame, (uint16_t)have.chains);
	consume(turn, &have, need);
	queue->stats->packets++;
	queue->stats->bytes += frame->bytes;
	return FRAME_TAKEN;
}

static void prefetch_chains(const struct rk_queue *queue, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		shm_prefetch(shm_at(queue->desc, 16u * (queue_head(queue, i) & queue->mask)));
}

uint32_t enqueue_turn(struct rk_queue *queue, struct rk_port *port, uint32_t burst)
{
	struct turn turn = {.queue = queue, .burst = burst};
	struct rk_frame frames[RK_BURST_MAX];
	uint16_t before = queue->used_next;
	uint32_t count, frame = 0;
	uint64_t start;

	if (!(queue->flags & RK_RING_ENABLED))
		return 0;
	turn.available = queue_available(queue);
	if (turn.available == 0)
		return 0;
	start = cycles_now();
	queue->walked = 0;
	count = turn.available < burst ? turn.available : burst;
	count = port->ops->rx(port, frames, count);
	if (count == 0)
		return 0;
	prefetch_chains(queue, count);
	while (frame < count && place(&turn, &frames[frame]) == FRAME_TAKEN)
		frame++;
	if (frame)
		port->ops->rx_done(port, frame);
	if (turn.done) {
		queue_publish(queue, before);
		queue->stats->bursts++;
		queue->stats->cycles += cycles_now() - start;
	}
	return turn.done;
}
