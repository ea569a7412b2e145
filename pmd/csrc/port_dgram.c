/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The dgram port: one Ethernet frame a datagram on a unix socket, as QEMU's "-netdev dgram" speaks.
 *
 * The peer is found by its path at each send, so it may come, go and come again.
 */
#define _GNU_SOURCE
#include "port.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/un.h>
#include <unistd.h>

#define ETHERNET_HEADER 14u

struct dgram_port {
	struct rk_port port;
	struct port_sender sender;
	struct sockaddr_un peer;
	struct port_pool pool;
	struct mmsghdr receives[PORT_POOL];
	struct iovec spaces[PORT_POOL];
};

static uint32_t dgram_verdict(int fd, int error)
{
	(void)fd;
	return port_verdict(error);
}

static uint32_t dgram_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	return port_send(&((struct dgram_port *)port)->sender, frames, n);
}

/* Keeps the whole frames of received buffers from slot on, side by side; returns how many. */
static uint32_t dgram_keep(struct dgram_port *dgram, uint32_t slot, uint32_t received)
{
	struct iovec *buffers = &dgram->pool.buffers[slot];
	uint32_t kept = 0;

	for (uint32_t i = 0; i < received; i++) {
		const struct mmsghdr *message = &dgram->receives[i];
		void *base = buffers[i].iov_base;

		if (message->msg_hdr.msg_flags & MSG_TRUNC || message->msg_len < ETHERNET_HEADER) {
			dgram->port.rx_missed++;
			continue;
		}
		buffers[i].iov_base = buffers[kept].iov_base;
		buffers[kept].iov_base = base;
		buffers[kept].iov_len = message->msg_len;
		kept++;
	}
	return kept;
}

static uint32_t dgram_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct dgram_port *dgram = (struct dgram_port *)port;
	struct port_pool *pool = &dgram->pool;
	uint32_t slot, space;
	int received;

	if (!pool->memory)
		return 0;
	space = n > pool->count ? port_pool_space(pool, n - pool->count, &slot) : 0;
	if (space > 0) {
		for (uint32_t i = 0; i < space; i++)
			dgram->spaces[i].iov_base = pool->buffers[slot + i].iov_base;
		received = recvmmsg(dgram->sender.fd, dgram->receives, space, MSG_DONTWAIT, NULL);
		if (received > 0)
			pool->count += dgram_keep(dgram, slot, (uint32_t)received);
	}
	return port_pool_show(pool, frames, n);
}

static void dgram_rx_done(struct rk_port *port, uint32_t k)
{
	port_pool_done(&((struct dgram_port *)port)->pool, k);
}

static void dgram_close(struct rk_port *port)
{
	struct dgram_port *dgram = (struct dgram_port *)port;

	close(dgram->sender.fd);
	port_pool_close(&dgram->pool);
	free(dgram);
}

static const struct rk_port_ops dgram_ops = {
	.kind = "dgram",
	.tx = dgram_tx,
	.rx = dgram_rx,
	.rx_done = dgram_rx_done,
	.close = dgram_close,
};

static void dgram_address(struct dgram_port *dgram, const char *path)
{
	dgram->peer.sun_family = AF_UNIX;
	strcpy(dgram->peer.sun_path, path);
	for (uint32_t i = 0; i < RK_BURST_MAX; i++) {
		dgram->sender.messages[i].msg_hdr.msg_name = &dgram->peer;
		dgram->sender.messages[i].msg_hdr.msg_namelen = sizeof(dgram->peer);
	}
}

struct rk_port *port_dgram_open(const struct rk_port_config *config, char *error,
				size_t error_bytes)
{
	struct dgram_port *dgram;

	if (config->output && strlen(config->output) >= sizeof(dgram->peer.sun_path))
		return port_refuse(error, error_bytes, "the peer's path is longer than %zu bytes",
				   sizeof(dgram->peer.sun_path) - 1);
	dgram = lines_zeroed(1, sizeof(*dgram));
	if (!dgram)
		return port_refuse(error, error_bytes, "out of memory");
	if (port_pool_open(&dgram->pool) != 0) {
		free(dgram);
		return port_refuse(error, error_bytes, "out of memory");
	}
	dgram->port.ops = &dgram_ops;
	dgram->port.wake_fd = config->fd;
	dgram->sender.fd = config->fd;
	dgram->sender.verdict = dgram_verdict;
	if (config->output)
		dgram_address(dgram, config->output);
	for (uint32_t i = 0; i < PORT_POOL; i++) {
		dgram->spaces[i].iov_len = RK_FRAME_MAX;
		dgram->receives[i].msg_hdr.msg_iov = &dgram->spaces[i];
		dgram->receives[i].msg_hdr.msg_iovlen = 1;
	}
	return &dgram->port;
}
