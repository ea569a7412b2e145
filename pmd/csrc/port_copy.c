/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy port: takes every frame by a copy of it, as the port of a VF without a way into VM1's memory
 * does; has none. It has no offloads either. What both cost is measured with it.
 */
#define _GNU_SOURCE
#include "port.h"

#include <stdlib.h>

/* One after another in a burst; an odd number of cache lines each, so that they share out the cache. */
#define COPY_BUFFERS 64u
#define COPY_STRIDE (((RK_FRAME_MAX / 64 + 1) | 1) * 64u)

struct copy_port {
	struct rk_port port;
	uint8_t *memory;
};

_Static_assert(COPY_STRIDE >= RK_FRAME_MAX, "a buffer holds any frame");

static uint32_t copy_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct copy_port *copy = (struct copy_port *)port;

	for (uint32_t i = 0; i < n; i++) {
		if (frames[i].bytes > RK_FRAME_MAX)
			frames[i].verdict = RK_DROP_OVERSIZE;
		else
			port_copy_frame(copy->memory + i % COPY_BUFFERS * COPY_STRIDE, &frames[i],
					port->flush);
	}
	return n;
}

static uint32_t copy_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	(void)port;
	(void)frames;
	(void)n;
	return 0;
}

static void copy_rx_done(struct rk_port *port, uint32_t k)
{
	(void)port;
	(void)k;
}

static void copy_close(struct rk_port *port)
{
	struct copy_port *copy = (struct copy_port *)port;

	free(copy->memory);
	free(copy);
}

static const struct rk_port_ops copy_ops = {
	.kind = "copy",
	.tx = copy_tx,
	.rx = copy_rx,
	.rx_done = copy_rx_done,
	.close = copy_close,
};

struct rk_port *port_copy_open(const struct rk_port_config *config, char *error, size_t error_bytes)
{
	struct copy_port *copy = lines_zeroed(1, sizeof(*copy));

	(void)config;
	if (copy)
		copy->memory = lines_zeroed(COPY_BUFFERS, COPY_STRIDE);
	if (!copy || !copy->memory) {
		free(copy);
		return port_refuse(error, error_bytes, "out of memory");
	}
	copy->port.ops = &copy_ops;
	copy->port.reads = 1;
	copy->port.wake_fd = RK_WAKE_NONE;
	return &copy->port;
}
