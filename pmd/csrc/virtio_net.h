/* SPDX-License-Identifier: BSD-3-Clause */
/* What the two directions of the virtio-net port share. */
#ifndef VIRTIO_NET_H
#define VIRTIO_NET_H

#include "port.h"
#include "virtqueue.h"

#define HEADER_BYTES 12u /* VERSION_1: with num_buffers, always (5.1.6.1) */
#define ETHERNET_HEADER_BYTES 14u

/* A receive buffer that the device is done with, and the port's user not yet. */
struct virtio_received {
	uint16_t id;
	uint32_t bytes; /* 1..as many as it was given for */
};

struct virtio_port {
	struct rk_port port;
	struct virtqueue rx, tx;
	bool mergeable;
	uint32_t frame_bytes_max;
	const uint32_t *link_up;
	const struct rk_vf_window *windows;
	struct rk_virtio_report *report;
	/* Transmit. Runs on; masked it is a slot. */
	uint32_t tx_first;  /* oldest chain not taken back */
	uint32_t held_done; /* held frames that were sent, not yet told */
	/* Receive: a ring of what was taken from the queue, oldest at first. */
	struct virtio_received *received;
	uint32_t received_first, received_count;
	struct iovec *shown; /* segments of the frames shown */
	uint32_t shown_span[RK_BURST_MAX]; /* buffers of each */
	/* Receive into VM1's memory. */
	uint64_t rx_notify;     /* the register's address, which rx.notify is not while the queue is stopped */
	uint16_t nowhere;       /* what it is then */
	uint32_t direct_due;    /* the chain whose turn it is to be used. Runs on; masked it is a slot */
	uint32_t *direct_bytes; /* by the first slot of a chain: how many it has */
	bool disordered;        /* the device used another: no buffer of VM1's suits it any more */
};

/* The device does what no device may: from now on the port stays away from it. */
void virtio_fail(struct virtio_port *vf, uint32_t trouble);

/* How many buffers the received frame has whose first one is the begin-th; 0: they have not all come, or trouble. */
uint32_t virtio_rx_span(struct virtio_port *vf, uint32_t begin);
/* Gives the device all buffers of the port's own, of an empty queue. */
void virtio_give_all(struct virtio_port *vf);

/* Operations of the port: ringk.h. */
uint32_t virtio_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n);
uint32_t virtio_reclaim(struct rk_port *port);
extern const struct rk_direct_ops virtio_direct_ops;

#endif
