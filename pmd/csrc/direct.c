/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * VM1 receives by the VF's DMA: its chains go to the VF as they are, and come back with a frame in them.
 *
 * They are taken and returned in ring order, as all chains are. Each has room for a header first. A frame in
 * several of them has no header in the further ones (5.1.6.4): what belongs there the port has to tell.
 */
#include "dirty.h"
#include "mtu.h"
#include "plain.h"
#include "suited.h"

/* The oldest chain that the VF has not, as it will have it. */
static inline struct posted *next_posted(const struct rk_queue *queue, uint32_t n)
{
	return &queue->posted[(queue->flight + queue->flying + n) & queue->flight_mask];
}

/*
 * The chains from a place on, at most count, as long as they are plain and suit the VF, as most do: how many. Of
 * the next one nothing is decided.
 */
static uint32_t plain_suited(const struct rk_queue *queue, const struct rk_port *port,
			     const struct place *place, uint32_t count,
			     struct rk_posting *postings)
{
	const struct rk_direct_ops *direct = port->ops->direct;
	const struct plain_view view = plain_view(queue, RK_WRITE, 0);
	const uint32_t header = queue->header_bytes;
	struct packed_desc descs[LAYOUT_PACKED ? RK_BURST_MAX : 1];
	struct head heads[RK_BURST_MAX];
	uint32_t n;

	if (count > place->left)
		count = place->left;
	if (LAYOUT_PACKED)
		count = packed_plain(queue, place, DESC_WRITE, count, descs, heads);
	else
		count = split_heads(queue, place, heads, count);
	for (n = 0; n < count; n++) {
		const struct packed_desc *desc = LAYOUT_PACKED ? &descs[n] : NULL;
		struct posted *posted = next_posted(queue, n);
		struct iovec memory;
		struct plain plain;
		uint64_t host;

		if (!ring_plain(heads[n].id, desc, DESC_WRITE, &plain, queue->desc) ||
		    plain.length <= header ||
		    !plain_anywhere(&view, &plain, &host))
			break;
		memory = (struct iovec){(void *)(uintptr_t)(host + header), plain.length - header};
		postings[n] = (struct rk_posting){direct->suits(port, &memory),
						  plain.length - header};
		if (!postings[n].iova)
			break;
		*posted = (struct posted){heads[n], plain.length - header,
					  (struct shm *)(uintptr_t)host, memory.iov_base};
	}
	return n;
}

/* Gives the VF what VM1 has posted, as far as it has room; returns how many chains. */
static uint32_t post(struct rk_queue *queue, struct rk_port *port, uint32_t burst)
{
	const struct rk_direct_ops *direct = port->ops->direct;
	const uint32_t room = direct->room(port);
	struct rk_posting postings[RK_BURST_MAX];
	struct place place;
	uint32_t n = 0;

	if (room == 0)
		return 0;
	place = ring_place(queue);
	if (burst > room)
		burst = room;
	if (queue->plain)
		n = plain_suited(queue, port, &place, burst, postings);
	queue->walked = n;
	queue->flying += n;
	place = ring_after(queue, place, n);
	while (n < burst && place.left && queue->walked < TURN_WALK_MAX) {
		struct posted *posted = next_posted(queue, 0);
		const enum suit suit = look_suited(queue, port, &place, posted, &postings[n]);

		if (suit == SUIT_FAULT)
			queue->fault = RING_FAULT;
		else if (suit == SUIT_NO)
			queue->asks = RK_EVENT_UNSUITED;
		if (suit != SUIT_YES)
			break;
		queue->flying++;
		place = ring_after(queue, place, posted->head.span);
		n++;
	}
	queue->next = place.next;
	if (n)
		direct->post(port, postings, n);
	return n;
}

#define MAC_BYTES 12u /* both addresses: a tag follows them */
#define TAG_BYTES 4u
#define TAGGED_MAX 2048u

/* Puts the tag that the VF took out back behind the addresses; false if there is no room. */
static bool put_tag(const struct posted *posted, struct rk_filled *filled)
{
	const uint32_t rest = filled->bytes - MAC_BYTES;
	const uint8_t tag[TAG_BYTES] = {(uint8_t)(filled->tag >> 24), (uint8_t)(filled->tag >> 16),
					(uint8_t)(filled->tag >> 8), (uint8_t)filled->tag};
	uint8_t moved[TAGGED_MAX];

	if (filled->bytes < MAC_BYTES || rest > sizeof(moved) ||
	    filled->bytes + TAG_BYTES > posted->room)
		return false;
	shm_copy_in(moved, shm_at(posted->frame_at, MAC_BYTES), rest);
	shm_copy_out(shm_at(posted->frame_at, MAC_BYTES), tag, sizeof(tag));
	shm_copy_out(shm_at(posted->frame_at, MAC_BYTES + TAG_BYTES), moved, rest);
	filled->bytes += TAG_BYTES;
	return true;
}

/* A frame that the VF wrote into the oldest chains. */
struct found {
	uint32_t span; /* of chains */
	uint32_t bytes;
	enum rk_drop verdict;
};

/* VM1 may change the frame meanwhile, and fools itself. Tags are in its first buffer. */
static bool in_place_over_mtu(const struct rk_queue *queue, uint32_t first_bytes, uint32_t bytes)
{
	const struct posted *posted = &queue->posted[queue->flight & queue->flight_mask];
	struct iovec segment = {posted->frame_at, first_bytes};
	const struct rk_frame frame = {.segments = &segment, .segment_count = 1, .bytes = bytes};

	return over_mtu(queue, &frame);
}

/* The first frame of n filled chains. One that goes on has filled its chain (5.1.6.4.1). */
static struct found find_frame(struct rk_queue *queue, const struct rk_filled *filled, uint32_t n)
{
	struct found found = {0};
	bool more;

	do {
		const struct posted *posted =
			&queue->posted[(queue->flight + found.span) & queue->flight_mask];
		const uint32_t room = posted->room + (found.span ? queue->header_bytes : 0);
		const struct rk_filled *part = &filled[found.span++];

		more = part->more && found.span < n;
		if (part->bytes > room)
			queue->asks = RK_EVENT_UNSUITED;
		if (part->bytes > room || part->bytes == 0 || (more && part->bytes < room))
			found.verdict = RK_DROP_VF_ERROR;
		found.bytes += part->bytes;
	} while (more);
	if (found.verdict != RK_SENT)
		return found;
	if (in_place_over_mtu(queue, filled->bytes, found.bytes))
		found.verdict = RK_DROP_OVER_MTU;
	else if (found.span > 1 && !(queue->flags & RK_RING_MERGEABLE))
		found.verdict = RK_DROP_SMALL_BUFFER;
	return found;
}

/* All that we or the VF can have written to a chain. */
static void mark_posted(const struct rk_queue *queue, const struct posted *posted)
{
	dirty_mark(queue, posted->header_at, queue->header_bytes);
	dirty_mark(queue, posted->frame_at, posted->room);
}

/* 5.1.6.4.1: no offload, and how many buffers. */
static inline void write_header(const struct rk_queue *queue, struct shm *at, uint32_t buffers)
{
	const uint8_t header[HEADER_BYTES_MAX] = {[HEADER_BEFORE_BUFFERS] = (uint8_t)buffers};

	if (queue->header_bytes == sizeof(header))
		shm_copy_out(at, header, sizeof(header));
	else
		shm_copy_out(at, header, HEADER_BEFORE_BUFFERS);
}

/* Returns the oldest chain in flight, with length bytes. */
static inline void return_chain(struct rk_queue *queue, uint32_t length, bool more)
{
	const struct posted *posted = &queue->posted[queue->flight & queue->flight_mask];

	if (__builtin_expect(queue->dirty != NULL, false))
		mark_posted(queue, posted);
	ring_return(queue, posted->head, length, more);
	queue->flight++;
	queue->flying--;
}

/* Returns the chains of a frame, with its header and what belongs in front of them; or empty. */
static void return_frame(struct rk_queue *queue, const struct rk_filled *filled,
			 const struct found *found)
{
	const bool sent = found->verdict == RK_SENT;

	for (uint32_t i = 0; i < found->span; i++) {
		const struct posted *posted = &queue->posted[queue->flight & queue->flight_mask];
		uint32_t length = 0;

		if (sent && i == 0) {
			write_header(queue, posted->header_at, found->span);
			length = queue->header_bytes + filled[i].bytes;
		} else if (sent) {
			length = filled[i].bytes;
			shm_copy_out(posted->header_at, filled[i].front,
				     length < queue->header_bytes ? length : queue->header_bytes);
		}
		return_chain(queue, length, sent && i + 1 < found->span);
	}
}

/* Whether the oldest chain has a frame for VM1, all of it, and as it is: most do. */
static inline bool plain_filled(const struct rk_queue *queue, const struct rk_filled *filled)
{
	const struct posted *posted = &queue->posted[queue->flight & queue->flight_mask];

	return !filled->more && !filled->tag && filled->bytes - 1 < posted->room &&
	       filled->bytes <= queue->frame_bytes_max;
}

_Static_assert(RK_SEGMENTS_MAX < 256, "num_buffers is one byte");

/* Returns what the VF has filled; how many chains. */
static uint32_t take_filled(struct rk_queue *queue, struct rk_port *port, uint32_t burst)
{
	struct rk_direction_stats *stats = queue->stats;
	struct rk_filled filled[RK_BURST_MAX];
	struct found found;
	uint32_t n;

	if (burst < RK_SEGMENTS_MAX)
		burst = RK_SEGMENTS_MAX; /* room for any frame */
	n = port->ops->direct->filled(port, filled, burst < queue->flying ? burst : queue->flying);
	if (n == RK_UNSUITED) {
		queue->asks = RK_EVENT_UNSUITED;
		return 0;
	}
	for (uint32_t i = 0; i < n; i += found.span) {
		const struct posted *posted = &queue->posted[queue->flight & queue->flight_mask];
		bool tagged = false;

		if (queue->plain && plain_filled(queue, &filled[i])) {
			found = (struct found){.span = 1, .bytes = filled[i].bytes};
			write_header(queue, posted->header_at, 1);
			return_chain(queue, queue->header_bytes + found.bytes, false);
		} else {
			tagged = filled[i].tag && put_tag(posted, &filled[i]);
			found = find_frame(queue, &filled[i], n - i);
			return_frame(queue, &filled[i], &found);
		}
		if (found.verdict == RK_SENT) {
			stats->packets++;
			stats->bytes += found.bytes;
			port->rx_direct += !tagged;
		} else {
			stats->drops[found.verdict]++;
		}
	}
	return n;
}

void LAYOUT(direct_drain)(struct rk_queue *queue, struct rk_port *port)
{
	while (queue->flying && take_filled(queue, port, RK_BURST_MAX))
		queue_publish(queue);
}

uint32_t LAYOUT(direct_turn)(struct rk_queue *queue, struct rk_port *port, uint32_t burst,
			     uint64_t *clock)
{
	uint32_t done, posted;

	done = take_filled(queue, port, burst);
	if (done)
		queue_publish(queue);
	posted = queue->asks ? 0 : post(queue, port, burst);
	if (done) {
		queue->stats->bursts++;
		queue->stats->cycles += clock_lap(clock);
	}
	return done > posted ? done : posted;
}
