/* SPDX-License-Identifier: BSD-3-Clause */
/* The null port: takes every frame, has none. The down port, a VF that is away: the same, but it drops them. */
#define _GNU_SOURCE
#include "port.h"

#include <stdlib.h>

static uint32_t null_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	(void)port;
	(void)frames;
	return n;
}

static uint32_t down_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	(void)port;
	return port_drop(frames, n, RK_DROP_VF_DOWN);
}

static uint32_t null_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	(void)port;
	(void)frames;
	(void)n;
	return 0;
}

static void null_rx_done(struct rk_port *port, uint32_t k)
{
	(void)port;
	(void)k;
}

static void null_close(struct rk_port *port)
{
	free(port);
}

static const struct rk_port_ops null_ops = {
	.kind = "null",
	.tx = null_tx,
	.rx = null_rx,
	.rx_done = null_rx_done,
	.close = null_close,
};

static const struct rk_port_ops down_ops = {
	.kind = "down",
	.tx = down_tx,
	.rx = null_rx,
	.rx_done = null_rx_done,
	.close = null_close,
};

static struct rk_port *sink_open(const struct rk_port_ops *ops, char *error, size_t error_bytes)
{
	struct rk_port *port = lines_zeroed(1, sizeof(*port));

	if (!port)
		return port_refuse(error, error_bytes, "out of memory");
	port->ops = ops;
	port->offloads = RK_RING_OFFLOADS;
	port->wake_fd = RK_WAKE_NONE;
	return port;
}

struct rk_port *port_null_open(const struct rk_port_config *config, char *error, size_t error_bytes)
{
	(void)config;
	return sink_open(&null_ops, error, error_bytes);
}

struct rk_port *port_down_open(const struct rk_port_config *config, char *error, size_t error_bytes)
{
	(void)config;
	return sink_open(&down_ops, error, error_bytes);
}
