/* SPDX-License-Identifier: BSD-3-Clause */
/* What the two directions of the virtio-net port share. */
#ifndef VIRTIO_NET_H
#define VIRTIO_NET_H

#include "port.h"
#include "virtqueue.h"

#define HEADER_BYTES 12u /* VERSION_1: with num_buffers, always (5.1.6.1) */

/* A receive buffer that the device is done with, and the port's user not yet. */
struct virtio_received {
	uint16_t id;
	uint32_t bytes; /* 1..buffer_bytes */
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
};

/* The device does what no device may: from now on the port stays away from it. */
void virtio_fail(struct virtio_port *vf, uint32_t trouble);

/* Operations of the port: ringk.h. */
uint32_t virtio_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n);
uint32_t virtio_reclaim(struct rk_port *port);

#endif
