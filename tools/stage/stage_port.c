/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stage_port.h"

struct holding_port {
	struct rk_port port;
	uint32_t held;
};

static uint32_t holding_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		frames[i].verdict = RK_HELD;
	((struct holding_port *)port)->held += n;
	return n;
}

static uint32_t holding_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	(void)port, (void)frames, (void)n;
	return 0;
}

static void holding_rx_done(struct rk_port *port, uint32_t k)
{
	(void)port, (void)k;
}

static uint32_t holding_reclaim(struct rk_port *port)
{
	struct holding_port *holding = (struct holding_port *)port;
	uint32_t done = holding->held;

	holding->held = 0;
	return done;
}

static void holding_close(struct rk_port *port)
{
	free(port);
}

static const struct rk_port_ops holding_ops = {
	.kind = "held",
	.tx = holding_tx,
	.rx = holding_rx,
	.rx_done = holding_rx_done,
	.reclaim = holding_reclaim,
	.close = holding_close,
};

struct rk_port *stage_port_open(const char *kind, uint32_t frame_bytes)
{
	const struct rk_port_config config = {
		.kind = kind, .fd = -1, .frame_bytes = frame_bytes, .receives = 1};
	char error[256] = "";
	struct rk_port *port;

	if (!strcmp(kind, "held")) {
		port = calloc(1, sizeof(struct holding_port));
		if (port)
			port->ops = &holding_ops;
		return port;
	}
	port = rk_port_open(&config, error, sizeof(error));
	if (!port)
		fprintf(stderr, "stage: port %s: %s\n", kind, error);
	return port;
}
