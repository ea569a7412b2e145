/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening a port by its kind, and what ports share: verdicts, batches to sockets, receive buffers. */
#define _GNU_SOURCE
#include "port.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define CACHE_LINE 64u

static const struct {
	const char *kind;
	port_opener *open;
} port_kinds[] = {
	{"null", port_null_open},     {"loop", port_loop_open},	  {"gen", port_gen_open},
	{"patch", port_patch_open},
	{"tap", port_tap_open},	      {"packet", port_packet_open}, {"dgram", port_dgram_open},
	{"pcap", port_pcap_open},     {"igbvf", port_igbvf_open},   {"virtio-net", port_virtio_open},
	{"xdp", port_xdp_open},	      {"copy", port_copy_open},	  {"down", port_down_open},
};

struct rk_port *rk_port_open(const struct rk_port_config *config, char *error, size_t error_bytes)
{
	for (size_t i = 0; i < sizeof(port_kinds) / sizeof(port_kinds[0]); i++)
		if (strcmp(config->kind, port_kinds[i].kind) == 0)
			return port_kinds[i].open(config, error, error_bytes);
	return port_refuse(error, error_bytes, "there is no kind of port named %s", config->kind);
}

void rk_port_close(struct rk_port *port)
{
	if (port)
		port->ops->close(port);
}

uint64_t rk_port_rx_missed(const struct rk_port *port)
{
	return __atomic_load_n(&port->rx_missed, __ATOMIC_RELAXED);
}

uint64_t rk_port_tx_held(const struct rk_port *port)
{
	return __atomic_load_n(&port->tx_held, __ATOMIC_RELAXED);
}

uint64_t rk_port_rx_direct(const struct rk_port *port)
{
	return __atomic_load_n(&port->rx_direct, __ATOMIC_RELAXED);
}

void rk_port_set_copy_below(struct rk_port *port, uint32_t bytes)
{
	port->copy_below = bytes;
}

void rk_port_set_direct(struct rk_port *port, uint32_t direct)
{
	if (port->ops->direct)
		port->ops->direct->mode(port, direct);
}

/* Times to look: it has no more frames than descriptors, whatever its VF still writes. */
#define REST_LOOKS 512u

void rk_port_drop_rest(struct rk_port *port)
{
	struct rk_frame frames[RK_BURST_MAX];

	if (!port->ops->direct)
		return;
	port->ops->direct->halt(port);
	for (uint32_t i = 0; i < REST_LOOKS; i++) {
		const uint32_t n = port->ops->rx(port, frames, RK_BURST_MAX);

		if (n == 0)
			return;
		port->rx_missed += n;
		port->ops->rx_done(port, n);
	}
}

uint32_t rk_port_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	return port->ops->tx(port, frames, n);
}

uint32_t rk_port_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	return port->ops->rx ? port->ops->rx(port, frames, n) : 0;
}

void rk_port_rx_done(struct rk_port *port, uint32_t k)
{
	if (port->ops->rx_done)
		port->ops->rx_done(port, k);
}

void *port_refuse(char *error, size_t error_bytes, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(error, error_bytes, format, arguments);
	va_end(arguments);
	return NULL;
}

uint32_t port_verdict(int error)
{
	switch (error) {
	case EAGAIN:
	case ENOBUFS:
	case EINTR:
		return RK_SENT;
	case EMSGSIZE:
		return RK_DROP_OVERSIZE;
	case ENETDOWN:
	case ENETUNREACH:
	case ENXIO:
	case ENODEV:
	case EIO:    /* a TAP that is not up */
	case EBADFD: /* a TAP that was deleted */
	case ENOENT:
	case ECONNREFUSED:
	case ECONNRESET:
	case ENOTCONN:
	case EPIPE:
		return RK_DROP_VF_DOWN;
	default:
		return RK_DROP_VF_ERROR;
	}
}

uint32_t port_drop(struct rk_frame *frames, uint32_t k, uint32_t verdict)
{
	for (uint32_t i = 0; i < k; i++)
		frames[i].verdict = verdict;
	return k;
}

uint32_t port_send(struct port_sender *sender, struct rk_frame *frames, uint32_t n)
{
	uint32_t done = 0;

	if (n > RK_BURST_MAX)
		n = RK_BURST_MAX;
	for (uint32_t i = 0; i < n; i++) {
		sender->messages[i].msg_hdr.msg_iov = frames[i].segments;
		sender->messages[i].msg_hdr.msg_iovlen = frames[i].segment_count;
	}
	while (done < n) {
		int sent = sendmmsg(sender->fd, &sender->messages[done], n - done,
				    MSG_DONTWAIT | MSG_NOSIGNAL);
		uint32_t verdict;

		if (sent > 0) {
			done += (uint32_t)sent;
			continue;
		}
		verdict = sender->verdict(sender->fd, errno);
		if (verdict == RK_SENT)
			break;
		/* What is down is down for the whole batch; another refusal is of one frame. */
		done += port_drop(&frames[done], verdict == RK_DROP_VF_DOWN ? n - done : 1,
				  verdict);
	}
	return done;
}

int port_pool_open(struct port_pool *pool)
{
	size_t stride = (RK_FRAME_MAX + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;

	pool->memory = lines_zeroed(PORT_POOL, stride);
	if (!pool->memory)
		return -1;
	for (uint32_t i = 0; i < PORT_POOL; i++)
		pool->buffers[i].iov_base = pool->memory + i * stride;
	return 0;
}

void port_pool_close(struct port_pool *pool)
{
	free(pool->memory);
}

uint32_t port_pool_space(struct port_pool *pool, uint32_t want, uint32_t *slot)
{
	uint32_t space = PORT_POOL - pool->count;

	if (pool->count == 0)
		pool->first = 0; /* the buffers used last are in the cache */
	*slot = (pool->first + pool->count) % PORT_POOL;
	if (space > PORT_POOL - *slot)
		space = PORT_POOL - *slot;
	return space < want ? space : want;
}

uint32_t port_pool_show(struct port_pool *pool, struct rk_frame *frames, uint32_t n)
{
	if (n > pool->count)
		n = pool->count;
	for (uint32_t i = 0; i < n; i++) {
		struct iovec *buffer = &pool->buffers[(pool->first + i) % PORT_POOL];

		port_show(&frames[i], buffer, 1, (uint32_t)buffer->iov_len);
	}
	return n;
}

void port_pool_done(struct port_pool *pool, uint32_t k)
{
	pool->first = (pool->first + k) % PORT_POOL;
	pool->count -= k;
}
