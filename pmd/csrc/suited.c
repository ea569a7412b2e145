/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How VM1 receives, by what it posts: by the VF's DMA where its buffers suit the VF, else by copies.
 *
 * Whoever set the ring up decides, since the VF's queue has to stop for it. A ring that receives by copies looks at
 * what VM1 posts meanwhile, and asks for the other way when a number of chains in a row would have suited. One that
 * does not costs a turn one look; all are looked at only as long as they suit.
 */
#include "suited.h"

#include "lines.h"

static inline uint32_t slots_between(const struct rk_queue *queue, uint16_t from, uint16_t to)
{
	return LAYOUT_PACKED ? packed_distance(queue, from, to) : (uint16_t)(to - from);
}

/* Looks at what VM1 has posted since; place: of the first chain not taken. VM1 may take back what it posted, and
 * fools itself: whoever goes by the answer looks again. */
static void look_on(struct rk_queue *queue, const struct rk_port *port, struct place place,
		    uint32_t burst)
{
	struct watch *watch = &queue->watch;
	const uint32_t moved = slots_between(queue, watch->from, place.next);

	if (watch->stopped && moved == 0)
		return;
	watch->from = place.next;
	watch->ahead = watch->ahead > moved ? watch->ahead - moved : 0;
	if (watch->ahead >= place.left)
		return;
	place = ring_after(queue, place, watch->ahead);
	queue->walked = 0;
	for (uint32_t i = 0; i < burst && place.left && queue->walked < TURN_WALK_MAX; i++) {
		struct posted posted;
		struct rk_posting posting;
		const enum suit suit = look_suited(queue, port, &place, &posted, &posting);

		watch->stopped = suit == SUIT_NO || suit == SUIT_FAULT;
		if (watch->stopped)
			watch->run = 0;
		if (suit != SUIT_YES)
			break;
		watch->run++;
		watch->ahead += posted.head.span;
		place = ring_after(queue, place, posted.head.span);
	}
	if (watch->run >= watch->goal)
		queue->asks = RK_EVENT_SUITED;
}

uint32_t LAYOUT(watched_turn)(struct rk_queue *queue, struct rk_port *port, uint32_t burst,
			      uint64_t *clock)
{
	const struct place place = ring_place(queue);

	if (place.left == 0)
		return 0;
	look_on(queue, port, place, burst);
	return LAYOUT(enqueue_turn)(queue, port, place, burst, clock);
}

#define LOOKED_AT 64u

bool LAYOUT(direct_suits)(struct rk_queue *queue, const struct rk_port *port)
{
	struct place place = ring_place(queue);
	enum suit suit = SUIT_YES;

	queue->walked = 0;
	for (uint32_t i = 0; i < LOOKED_AT && place.left && suit == SUIT_YES; i++) {
		struct posted posted;
		struct rk_posting posting;

		suit = look_suited(queue, port, &place, &posted, &posting);
		if (suit == SUIT_YES)
			place = ring_after(queue, place, posted.head.span);
	}
	queue->fault = RK_FAULT_NONE; /* the first turn will see it again */
	return suit == SUIT_YES || suit == SUIT_NONE;
}

#if !LAYOUT_PACKED
uint32_t rk_queue_set_direct(struct rk_queue *queue, const struct rk_port *port)
{
	/* What the VF has of VM1's could not be taken back from it as translations go. */
	if (!port->ops->direct || !(queue->flags & RK_RING_ENABLED) ||
	    queue->flags & RK_RING_TRANSLATED)
		return 0;
	if (!(queue_packed(queue) ? packed_direct_suits(queue, port)
				  : split_direct_suits(queue, port)))
		return 0;
	if (!queue->posted)
		queue->posted = lines_zeroed(queue->flight_mask + 1, sizeof(*queue->posted));
	if (!queue->posted)
		return 0;
	queue->receives = RECEIVES_DIRECT;
	queue->asks = 0;
	return 1;
}

void rk_queue_set_copied(struct rk_queue *queue, uint32_t patience)
{
	const uint32_t needed = RK_RING_ENABLED | RK_RING_TRANSLATED;
	const bool watched = patience && (queue->flags & needed) == RK_RING_ENABLED;

	if (queue->receives == RECEIVES_DIRECT) {
		queue->next = queue->used_next; /* chains are taken and returned in ring order */
		queue->flying = 0;
	}
	queue->receives = watched ? RECEIVES_WATCHED : RECEIVES_COPIES;
	queue->asks = 0;
	queue->watch = (struct watch){.from = queue->next, .goal = patience};
}
#endif
