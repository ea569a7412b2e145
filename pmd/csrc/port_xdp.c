/* SPDX-License-Identifier: BSD-3-Clause */
/* The xdp port: opening, and receiving. Frames are shown in the chunks that the kernel put them into. */
#define _GNU_SOURCE
#include "xdp.h"

#include <linux/if_ether.h>
#include <linux/if_xdp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#define TURNS_PER_WAKE 64u    /* between two looks at what the kernel waits for */
#define TURNS_PER_COUNT 4096u /* and two at what it lost */

/* ---- chunks to receive into ------------------------------------------------------------------- */

void xdp_give(struct xdp_port *xdp, struct xdp_queue *queue, uint32_t chunk)
{
	struct xdp_ring *fill = &queue->fill;

	queue->ours[chunk] = false;
	fill->addresses[fill->at++ & fill->mask] = (uint64_t)chunk << xdp->chunk_shift;
}

void xdp_publish_fill(struct xdp_queue *queue)
{
	xdp_publish(queue->fill.producer, &queue->fill);
	shm_fence(); /* as for sending */
	if (__atomic_load_n(queue->fill.flags, __ATOMIC_RELAXED) & XDP_WAKE)
		recvfrom(queue->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
}

static void give_back(struct xdp_port *xdp, struct xdp_queue *queue, uint32_t pieces)
{
	for (; pieces; pieces--) {
		struct xdp_piece *piece =
			&queue->pieces[queue->piece_first++ & (queue->rx_count - 1)];

		xdp_give(xdp, queue, piece->at >> xdp->chunk_shift);
	}
	xdp_publish_fill(queue);
}

/* ---- receive ---------------------------------------------------------------------------------- */

/* Takes over all that the kernel has received. */
static void pull(struct xdp_port *xdp, struct xdp_queue *queue)
{
	struct xdp_ring *rx = &queue->rx;
	uint32_t n = xdp_ready(rx);

	if (n > queue->rx_count)
		xdp_break(xdp);
	if (n == 0 || xdp_broken(xdp))
		return;
	for (; n; n--) {
		struct xdp_descriptor *from = &rx->descriptors[rx->at++ & rx->mask];
		uint64_t at = __atomic_load_n(&from->address, __ATOMIC_RELAXED);
		uint32_t bytes = __atomic_load_n(&from->bytes, __ATOMIC_RELAXED);
		uint32_t options = __atomic_load_n(&from->options, __ATOMIC_RELAXED);
		uint64_t chunk = at >> xdp->chunk_shift;

		if (chunk >= queue->rx_count || queue->ours[chunk] ||
		    bytes > xdp->chunk_bytes - (at & (xdp->chunk_bytes - 1))) {
			xdp_break(xdp);
			return;
		}
		queue->ours[chunk] = true;
		queue->pieces[queue->piece_end++ & (queue->rx_count - 1)] =
			(struct xdp_piece){(uint32_t)at, bytes, options & XDP_MORE};
	}
	xdp_publish(rx->consumer, rx);
}

/* Makes segments of the frame whose first piece is at; returns its pieces, 0 if not all are there. */
static uint32_t gather(const struct xdp_queue *queue, uint32_t at, struct rk_frame *frame,
		       struct iovec *segments)
{
	uint32_t count = 0, bytes = 0;

	for (uint32_t i = at; i != queue->piece_end; i++) {
		const struct xdp_piece *piece = &queue->pieces[i & (queue->rx_count - 1)];

		if (piece->bytes)
			segments[count++] =
				(struct iovec){queue->memory + piece->at, piece->bytes};
		bytes += piece->bytes;
		if (piece->more)
			continue;
		port_show(frame, segments, count, bytes);
		return i + 1 - at;
	}
	return 0;
}

static uint32_t queue_rx(struct xdp_port *xdp, struct xdp_queue *queue, struct rk_frame *frames,
			 uint32_t n)
{
	struct iovec *segments = queue->shown;
	uint32_t i = 0, at;

	pull(xdp, queue);
	if (xdp_broken(xdp))
		return 0;
	queue->span_first = 0;
	for (at = queue->piece_first; i < n;) {
		uint32_t span = gather(queue, at, &frames[i], segments);

		if (span == 0)
			break;
		if (frames[i].bytes >= ETH_HLEN && frames[i].bytes <= RK_FRAME_MAX) {
			segments += frames[i].segment_count;
			queue->spans[i++] = span;
			at += span;
			continue;
		}
		if (i > 0)
			break; /* passed over when it is the oldest */
		queue->passed_over++;
		give_back(xdp, queue, span);
		at = queue->piece_first;
	}
	if (i == 0 && queue->piece_end - queue->piece_first == queue->rx_count)
		xdp_break(xdp); /* a frame that would never end */
	return i;
}

/* Frames the kernel lost since the sockets were made. */
static void count_lost(struct xdp_port *xdp)
{
	uint64_t lost = 0;

	for (uint32_t i = 0; i < xdp->count; i++) {
		struct xdp_queue *queue = &xdp->queues[i];
		struct xdp_statistics statistics = {0};
		socklen_t length = sizeof(statistics);

		if (getsockopt(queue->fd, SOL_XDP, XDP_STATISTICS, &statistics, &length) == 0)
			queue->lost = statistics.rx_dropped + statistics.rx_ring_full;
		lost += queue->lost + queue->passed_over;
	}
	__atomic_store_n(&xdp->port.rx_missed, lost, __ATOMIC_RELAXED);
}

/* What no turn with frames brings about: a wake-up that came to nothing, and losses. */
static void look_after(struct xdp_port *xdp)
{
	struct xdp_queue *sender = &xdp->queues[0];

	if (++xdp->turns % TURNS_PER_WAKE)
		return;
	for (uint32_t i = 0; i < xdp->count; i++)
		xdp_publish_fill(&xdp->queues[i]);
	if (sender->free_count != sender->tx_count)
		xdp_wake_tx(sender);
	if (xdp->turns % TURNS_PER_COUNT == 0)
		count_lost(xdp);
}

uint32_t xdp_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct xdp_port *xdp = (struct xdp_port *)port;

	if (n > RK_BURST_MAX)
		n = RK_BURST_MAX;
	look_after(xdp);
	for (uint32_t i = 0; i < xdp->count; i++) {
		uint32_t shown;

		/* Frames are shown again until some are taken; then it is the next queue's turn. */
		if (xdp->taken || i > 0)
			xdp->current = (xdp->current + 1) % xdp->count;
		xdp->taken = false;
		shown = queue_rx(xdp, &xdp->queues[xdp->current], frames, n);
		if (shown)
			return shown;
	}
	return 0;
}

void xdp_rx_done(struct rk_port *port, uint32_t k)
{
	struct xdp_port *xdp = (struct xdp_port *)port;
	struct xdp_queue *queue = &xdp->queues[xdp->current];
	uint32_t pieces = 0;

	for (uint32_t i = 0; i < k; i++)
		pieces += queue->spans[queue->span_first++];
	give_back(xdp, queue, pieces);
	xdp->taken = true;
}

/* ---- sleeping --------------------------------------------------------------------------------- */

/* A frame that comes makes its socket readable, which is an edge of epoll_fd whoever looked before. */
static uint32_t xdp_arm(struct rk_port *port)
{
	struct xdp_port *xdp = (struct xdp_port *)port;
	struct xdp_queue *sender = &xdp->queues[0];

	if (xdp_broken(xdp))
		return RK_ARMED;
	for (uint32_t i = 0; i < xdp->count; i++)
		xdp_publish_fill(&xdp->queues[i]);
	if (sender->free_count == sender->tx_count)
		return RK_ARMED;
	xdp_wake_tx(sender);
	xdp_reclaim(xdp, sender);
	return sender->free_count == sender->tx_count ? RK_ARMED : RK_ERRAND;
}

/* One descriptor for all sockets; where one cannot be waited for, the port is polled. */
static void open_wake(struct xdp_port *xdp)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET};
	bool all = true;

	xdp->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	for (uint32_t i = 0; i < xdp->count && all; i++)
		all = xdp->epoll_fd >= 0 &&
		      epoll_ctl(xdp->epoll_fd, EPOLL_CTL_ADD, xdp->queues[i].fd, &event) == 0;
	xdp->port.wake_fd = all ? xdp->epoll_fd : RK_WAKE_POLL;
}

/* ---- open and close --------------------------------------------------------------------------- */

static void xdp_close(struct rk_port *port)
{
	struct xdp_port *xdp = (struct xdp_port *)port;

	for (uint32_t i = 0; i < xdp->count; i++) {
		free(xdp->queues[i].pieces);
		free(xdp->queues[i].ours);
		free(xdp->queues[i].shown);
		free(xdp->queues[i].free);
	}
	free(xdp->queues);
	if (xdp->epoll_fd >= 0)
		close(xdp->epoll_fd);
	free(xdp);
}

static const struct rk_port_ops xdp_ops = {
	.kind = "xdp",
	.tx = xdp_tx,
	.rx = xdp_rx,
	.rx_done = xdp_rx_done,
	.close = xdp_close,
	.arm = xdp_arm,
};

static struct xdp_ring ring_at(const struct rk_xdp_ring *config, uint32_t count)
{
	return (struct xdp_ring){
		.producer = (uint32_t *)(uintptr_t)config->producer,
		.consumer = (uint32_t *)(uintptr_t)config->consumer,
		.flags = (const uint32_t *)(uintptr_t)config->flags,
		.addresses = (uint64_t *)(uintptr_t)config->entries,
		.mask = count - 1,
	};
}

/* Whether there is memory for it. */
static bool open_queue(struct xdp_port *xdp, struct xdp_queue *queue, const struct rk_xdp_queue *config)
{
	const uint32_t chunks = config->rx_count + config->tx_count;

	queue->fill = ring_at(&config->fill, config->rx_count);
	queue->rx = ring_at(&config->rx, config->rx_count);
	queue->tx = ring_at(&config->tx, config->tx_count);
	queue->completion = ring_at(&config->completion, config->tx_count);
	queue->memory = (uint8_t *)(uintptr_t)config->memory;
	queue->rx_count = config->rx_count;
	queue->tx_count = config->tx_count;
	queue->fd = config->fd;
	queue->pieces = lines_zeroed(config->rx_count, sizeof(*queue->pieces));
	queue->shown = lines_zeroed(config->rx_count, sizeof(*queue->shown));
	queue->ours = lines_zeroed(chunks, sizeof(*queue->ours));
	queue->free = lines_zeroed(chunks, sizeof(*queue->free));
	if (!queue->pieces || !queue->shown || !queue->ours || !queue->free)
		return false;
	for (uint32_t i = 0; i < queue->tx_count; i++) {
		queue->ours[queue->rx_count + i] = true;
		queue->free[queue->free_count++] = chunks - 1 - i;
	}
	for (uint32_t i = 0; i < queue->rx_count; i++)
		xdp_give(xdp, queue, i);
	xdp_publish_fill(queue);
	return true;
}

static bool power_of_two(uint32_t value)
{
	return value && (value & (value - 1)) == 0;
}

static bool possible(const struct rk_xdp_config *config)
{
	if (config->count == 0 || config->queues[0].tx_count == 0 || !power_of_two(config->chunk_bytes))
		return false;
	for (uint32_t i = 0; i < config->count; i++) {
		const struct rk_xdp_queue *queue = &config->queues[i];

		if (!power_of_two(queue->rx_count) ||
		    (queue->tx_count && !power_of_two(queue->tx_count)) ||
		    ((uint64_t)queue->rx_count + queue->tx_count) * config->chunk_bytes > UINT32_MAX)
			return false;
	}
	return true;
}

struct rk_port *port_xdp_open(const struct rk_port_config *config, char *error, size_t error_bytes)
{
	const struct rk_xdp_config *given = config->xdp;
	struct xdp_port *xdp;

	if (!given || !possible(given))
		return port_refuse(error, error_bytes, "its queues are none");
	xdp = lines_zeroed(1, sizeof(*xdp));
	if (xdp)
		xdp->queues = lines_zeroed(given->count, sizeof(*xdp->queues));
	if (!xdp || !xdp->queues) {
		free(xdp);
		return port_refuse(error, error_bytes, "out of memory");
	}
	xdp->epoll_fd = -1;
	xdp->port.ops = &xdp_ops;
	xdp->port.reads = 1;
	xdp->state = (struct rk_xdp_state *)(uintptr_t)given->state;
	xdp->chunk_bytes = given->chunk_bytes;
	xdp->chunk_shift = (uint32_t)__builtin_ctz(given->chunk_bytes);
	xdp->multi_buffer = given->multi_buffer;
	xdp->count = given->count;
	for (uint32_t i = 0; i < given->count; i++) {
		if (open_queue(xdp, &xdp->queues[i], &given->queues[i]))
			continue;
		xdp_close(&xdp->port);
		return port_refuse(error, error_bytes, "out of memory");
	}
	open_wake(xdp);
	return &xdp->port;
}
