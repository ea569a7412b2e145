/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * VM1 receives by the VF's DMA: its chains go to the VF as they are, and come back with a frame in them.
 *
 * They are taken and returned in ring order, as all chains are. A frame is in one chain: what a VF would
 * spread over several lies behind a header's room in each, where VM1 expects none (5.1.6.4).
 */
#include "layout.h"
#include "mtu.h"

#include <stdlib.h>

/* Whether a chain is one run for the frame, behind or after the whole header; then where they are. */
static inline bool find_room(const struct rk_queue *queue, const struct chain *chain,
			     struct posted *posted, struct iovec *memory)
{
	const uint32_t header = queue->header_bytes;
	const struct iovec *first = chain->segments;

	posted->header_at = first[0].iov_base;
	if (chain->count == 1 && first[0].iov_len > header)
		*memory = (struct iovec){shm_at(first[0].iov_base, header),
					 first[0].iov_len - header};
	else if (chain->count == 2 && first[0].iov_len == header)
		*memory = first[1];
	else
		return false;
	posted->frame_at = memory->iov_base;
	posted->room = (uint32_t)memory->iov_len;
	return true;
}

/* The chain at a place. LOOK_FAULT: of the ring, or (then unsuited) it is not for the VF. */
static enum look look_suited(struct rk_queue *queue, const struct rk_port *port,
			     const struct place *place, struct posted *posted, uint64_t *iova)
{
	struct iovec memory;
	struct chain chain = {.segments = queue->segments};
	const enum look look = ring_look(queue, place, &chain, &posted->head);

	if (look == LOOK_FAULT)
		queue->fault = RING_FAULT;
	if (look != LOOK_CHAIN)
		return look;
	if (chain.verdict == RK_SENT && find_room(queue, &chain, posted, &memory)) {
		*iova = port->ops->direct->suits(port, &memory);
		if (*iova)
			return LOOK_CHAIN;
	}
	queue->unsuited = true;
	return LOOK_FAULT;
}

/* Gives the VF what VM1 has posted, as far as it has room; returns how many chains. */
static uint32_t post(struct rk_queue *queue, struct rk_port *port, uint32_t burst)
{
	const struct rk_direct_ops *direct = port->ops->direct;
	const uint32_t room = direct->room(port);
	uint64_t iovas[RK_BURST_MAX];
	struct place place;
	uint32_t n = 0;

	if (room == 0)
		return 0;
	place = ring_place(queue);
	queue->walked = 0;
	if (burst > room)
		burst = room;
	while (n < burst && place.left && queue->walked < TURN_WALK_MAX) {
		struct posted posted;

		if (look_suited(queue, port, &place, &posted, &iovas[n]) != LOOK_CHAIN)
			break;
		queue->posted[(queue->flight + queue->flying) & queue->flight_mask] = posted;
		queue->flying++;
		place = ring_after(queue, place, posted.head.span);
		n++;
	}
	queue->next = place.next;
	if (n)
		direct->post(port, iovas, n);
	return n;
}

/* A frame that the VF wrote to VM1's memory: VM1 may change it meanwhile, and fools itself. */
static bool in_place_over_mtu(const struct rk_queue *queue, const struct posted *posted,
			      uint32_t bytes)
{
	struct iovec segment = {posted->frame_at, bytes};
	const struct rk_frame frame = {.segments = &segment, .segment_count = 1, .bytes = bytes};

	return over_mtu(queue, &frame);
}

/* Returns what the VF has filled, each chain with its header; how many. */
static uint32_t take_filled(struct rk_queue *queue, struct rk_port *port, uint32_t burst)
{
	struct rk_direction_stats *stats = queue->stats;
	uint32_t lengths[RK_BURST_MAX];
	uint8_t header[HEADER_BYTES_MAX] = {[HEADER_BEFORE_BUFFERS] = 1}; /* num_buffers */
	uint32_t n = port->ops->direct->filled(port, lengths,
					       burst < queue->flying ? burst : queue->flying);

	for (uint32_t i = 0; i < n; i++) {
		const struct posted *posted = &queue->posted[queue->flight & queue->flight_mask];
		enum rk_drop verdict = RK_SENT;

		if (lengths[i] > posted->room)
			queue->unsuited = true;
		if (lengths[i] == 0 || lengths[i] > posted->room)
			verdict = RK_DROP_VF_ERROR;
		else if (in_place_over_mtu(queue, posted, lengths[i]))
			verdict = RK_DROP_OVER_MTU;
		if (verdict == RK_SENT) {
			shm_copy_out(posted->header_at, header, queue->header_bytes);
			stats->packets++;
			stats->bytes += lengths[i];
			port->rx_direct++;
		} else {
			stats->drops[verdict]++;
		}
		ring_return(queue, posted->head,
			    verdict == RK_SENT ? queue->header_bytes + lengths[i] : 0, false);
		queue->flight++;
		queue->flying--;
	}
	return n;
}

void LAYOUT(direct_drain)(struct rk_queue *queue, struct rk_port *port)
{
	while (queue->flying && take_filled(queue, port, RK_BURST_MAX))
		queue_publish(queue);
}

uint32_t LAYOUT(direct_turn)(struct rk_queue *queue, struct rk_port *port, uint32_t burst)
{
	const uint64_t start = cycles_now();
	uint32_t done, posted;

	done = take_filled(queue, port, burst);
	if (done)
		queue_publish(queue);
	posted = queue->unsuited ? 0 : post(queue, port, burst);
	if (done) {
		queue->stats->bursts++;
		queue->stats->cycles += cycles_now() - start;
	}
	return done > posted ? done : posted;
}

#define LOOKED_AT 64u

bool LAYOUT(direct_suits)(struct rk_queue *queue, const struct rk_port *port)
{
	struct place place = ring_place(queue);
	enum look look = LOOK_CHAIN;

	queue->walked = 0;
	for (uint32_t i = 0; i < LOOKED_AT && place.left && look == LOOK_CHAIN; i++) {
		struct posted posted;
		uint64_t iova;

		look = look_suited(queue, port, &place, &posted, &iova);
		if (look == LOOK_CHAIN)
			place = ring_after(queue, place, posted.head.span);
	}
	queue->fault = RK_FAULT_NONE; /* the first turn will see it again */
	queue->unsuited = false;
	return look != LOOK_FAULT;
}

#if !LAYOUT_PACKED
uint32_t rk_queue_set_direct(struct rk_queue *queue, const struct rk_port *port)
{
	if (!port->ops->direct || !(queue->flags & RK_RING_ENABLED))
		return 0;
	if (!(queue_packed(queue) ? packed_direct_suits(queue, port)
				  : split_direct_suits(queue, port)))
		return 0;
	queue->posted = calloc(queue->flight_mask + 1, sizeof(*queue->posted));
	return queue->posted != NULL;
}
#endif
