/* SPDX-License-Identifier: BSD-3-Clause */
/* The tap port: one queue of a kernel TAP device, a system call a frame: it has no batches. */
#define _GNU_SOURCE
#include "port.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

struct tap_port {
	struct rk_port port;
	int fd;
	struct port_pool pool;
};

static uint32_t tap_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct tap_port *tap = (struct tap_port *)port;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t verdict;

		if (writev(tap->fd, frames[i].segments, (int)frames[i].segment_count) >= 0)
			continue;
		verdict = port_verdict(errno);
		if (verdict == RK_SENT)
			return i;
		if (verdict == RK_DROP_VF_DOWN) {
			port_drop(&frames[i], n - i, verdict);
			break;
		}
		frames[i].verdict = verdict;
	}
	return n;
}

static uint32_t tap_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct tap_port *tap = (struct tap_port *)port;
	struct port_pool *pool = &tap->pool;

	while (pool->count < n) {
		uint32_t slot;
		ssize_t length;

		if (port_pool_space(pool, 1, &slot) == 0)
			break;
		length = read(tap->fd, pool->buffers[slot].iov_base, RK_FRAME_MAX);
		if (length <= 0)
			break; /* none now, or the device is down or gone: it shows when sending */
		pool->buffers[slot].iov_len = (size_t)length;
		pool->count++;
	}
	return port_pool_show(pool, frames, n);
}

static void tap_rx_done(struct rk_port *port, uint32_t k)
{
	port_pool_done(&((struct tap_port *)port)->pool, k);
}

static void tap_close(struct rk_port *port)
{
	struct tap_port *tap = (struct tap_port *)port;

	close(tap->fd);
	port_pool_close(&tap->pool);
	free(tap);
}

static const struct rk_port_ops tap_ops = {
	.kind = "tap",
	.tx = tap_tx,
	.rx = tap_rx,
	.rx_done = tap_rx_done,
	.close = tap_close,
};

struct rk_port *port_tap_open(const struct rk_port_config *config, char *error, size_t error_bytes)
{
	struct tap_port *tap = calloc(1, sizeof(*tap));

	if (!tap)
		return port_refuse(error, error_bytes, "out of memory");
	if (port_pool_open(&tap->pool) != 0) {
		free(tap);
		return port_refuse(error, error_bytes, "out of memory");
	}
	tap->port.ops = &tap_ops;
	tap->port.wake_fd = config->fd;
	tap->fd = config->fd;
	return &tap->port;
}
