/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The tap port: one queue of a kernel TAP device, a system call a frame: it has no batches. Each frame has a
 * virtio-net header before it, whose first form is struct rk_offload: the kernel does what it asks for.
 */
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
	struct rk_offload offloads[PORT_POOL]; /* of the pool's frames */
};

static ssize_t tap_write(int fd, const struct rk_frame *frame)
{
	struct rk_offload offload = frame->offload;
	struct iovec parts[1 + RK_SEGMENTS_MAX] = {{&offload, sizeof(offload)}};

	memcpy(&parts[1], frame->segments, frame->segment_count * sizeof(parts[0]));
	return writev(fd, parts, 1 + (int)frame->segment_count);
}

static uint32_t tap_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct tap_port *tap = (struct tap_port *)port;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t verdict;

		if (tap_write(tap->fd, &frames[i]) >= 0)
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
		struct iovec parts[2];
		uint32_t slot;
		ssize_t length;

		if (port_pool_space(pool, 1, &slot) == 0)
			break;
		parts[0] = (struct iovec){&tap->offloads[slot], sizeof(tap->offloads[slot])};
		parts[1] = (struct iovec){pool->buffers[slot].iov_base, RK_FRAME_MAX};
		length = readv(tap->fd, parts, 2);
		if (length <= (ssize_t)parts[0].iov_len)
			break; /* none now, or the device is down or gone: it shows when sending */
		pool->buffers[slot].iov_len = (size_t)length - parts[0].iov_len;
		pool->count++;
	}
	n = port_pool_show(pool, frames, n);
	for (uint32_t i = 0; i < n; i++)
		frames[i].offload = tap->offloads[(pool->first + i) % PORT_POOL];
	return n;
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
	struct tap_port *tap = lines_zeroed(1, sizeof(*tap));

	if (!tap)
		return port_refuse(error, error_bytes, "out of memory");
	if (port_pool_open(&tap->pool) != 0) {
		free(tap);
		return port_refuse(error, error_bytes, "out of memory");
	}
	tap->port.ops = &tap_ops;
	tap->port.wake_fd = config->fd;
	tap->port.offloads = config->offloads;
	tap->fd = config->fd;
	return &tap->port;
}
