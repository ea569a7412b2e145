/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The xdp port: the queues of a network interface that one queue pair has, an AF_XDP socket each.
 * Documentation/networking/af_xdp.rst describes the rings.
 *
 * The kernel writes its index, flags and entries at any time. Each is read once and judged: a ring that
 * claims more than it can hold, or names memory that was not the kernel's, makes the port broken.
 */
#ifndef XDP_H
#define XDP_H

#include <stdbool.h>

#include "port.h"

/* linux/if_xdp.h; the first is missing in the headers of Linux before 6.6. */
#define XDP_MORE (1u << 0) /* XDP_PKT_CONTD: the frame goes on in the next descriptor */
#define XDP_WAKE (1u << 0) /* XDP_RING_NEED_WAKEUP */

struct xdp_descriptor {
	uint64_t address; /* in the memory */
	uint32_t bytes, options;
};

struct xdp_ring {
	uint32_t *producer, *consumer;
	const uint32_t *flags;
	union {
		struct xdp_descriptor *descriptors;
		uint64_t *addresses; /* fill, completion */
	};
	uint32_t mask;
	uint32_t at; /* the index that is ours to move, modulo 2^32 */
};

/* A descriptor that was received: part of a frame, or all of it. */
struct xdp_piece {
	uint32_t at, bytes;
	bool more;
};

struct xdp_queue {
	struct xdp_ring fill, completion, rx, tx;
	uint8_t *memory;
	uint32_t rx_count, tx_count; /* chunks: those of rx come first */
	int fd;

	/* Received: pieces not given back, oldest first. Each is another chunk, so there are never more
	 * than rx_count. */
	struct xdp_piece *pieces;
	uint32_t piece_first, piece_end;
	bool *ours; /* by chunk: the kernel gave it to us, or never had it */
	struct iovec *shown;
	uint32_t spans[RK_BURST_MAX]; /* pieces of each frame shown */
	uint32_t span_first;          /* frames shown before this one are given back */
	uint64_t passed_over, lost;   /* frames: no frame of VM1's; those the kernel says it lost */

	/* To send. */
	uint32_t *free; /* chunks, those used last on top */
	uint32_t free_count;
	bool down; /* the interface refused the last wake-up */
};

struct xdp_port {
	struct rk_port port;
	struct rk_xdp_state *state;
	uint32_t chunk_bytes, chunk_shift;
	bool multi_buffer;
	uint32_t turns; /* of rx, for what is to be done now and then */
	uint32_t current; /* the queue whose frames were shown */
	bool taken;       /* some of those were taken */
	uint32_t count;
	struct xdp_queue *queues;
	int epoll_fd; /* of all their sockets */
};

uint32_t xdp_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n);
uint32_t xdp_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n);
void xdp_rx_done(struct rk_port *port, uint32_t k);
/* Takes back the chunks that were sent. */
void xdp_reclaim(struct xdp_port *xdp, struct xdp_queue *queue);
/* Has the kernel send what it has not; false where the interface is down. */
bool xdp_wake_tx(struct xdp_queue *queue);
/* Gives the kernel a chunk to receive into; xdp_publish_fill() lets it see all. */
void xdp_give(struct xdp_port *xdp, struct xdp_queue *queue, uint32_t chunk);
void xdp_publish_fill(struct xdp_queue *queue);

static inline bool xdp_broken(const struct xdp_port *xdp)
{
	return __atomic_load_n(&xdp->state->broken, __ATOMIC_RELAXED);
}

/* Nothing of the rings is believed any more; driver/software_vf/xdp.py has them made anew. */
static inline void xdp_break(struct xdp_port *xdp)
{
	__atomic_store_n(&xdp->state->broken, 1, __ATOMIC_RELAXED);
}

/* Entries that the kernel has put into a ring of at most mask + 1; a number past that is a lie. */
static inline uint32_t xdp_ready(const struct xdp_ring *ring)
{
	/* Acquire: the entries are read after the index that says they are there. */
	return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE) - ring->at;
}

/* Lets the kernel see our index: entries before it are filled (producer) or were read (consumer). */
static inline void xdp_publish(uint32_t *index, const struct xdp_ring *ring)
{
	__atomic_store_n(index, ring->at, __ATOMIC_RELEASE);
}

#endif
