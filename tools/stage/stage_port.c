/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stage_port.h"

/* A VF's transmit ring: as many descriptors as it has buffers, and it is done with each at once. */
#define VF_SIZE 512u
#define VF_BUFFER_BYTES 2048u

struct vf_descriptor {
	uint64_t address;
	uint32_t length, flags;
};

struct holding_port {
	struct rk_port port;
	uint32_t held; /* or posted */
	uint32_t next;
	uint32_t frame_bytes; /* that it receives */
	bool copies;
	struct vf_descriptor ring[VF_SIZE];
	uint8_t buffers[VF_SIZE][VF_BUFFER_BYTES];
};

struct counted_port {
	_Alignas(128) struct rk_port port; /* in lines of its own, as the kernel's ports are */
	struct stage_end *end;
};

/* What a VF's port does with frames of one segment: a descriptor each, of VM1's memory or of a copy. */
static uint32_t vf_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct holding_port *vf = (struct holding_port *)port;

	for (uint32_t i = 0; i < n; i++) {
		const uint32_t at = vf->next++ % VF_SIZE;
		const struct iovec *from = frames[i].segments;
		void *frame = from->iov_base;

		if (vf->copies)
			frame = memcpy(vf->buffers[at], from->iov_base, from->iov_len);
		else
			frames[i].verdict = RK_HELD;
		vf->ring[at] = (struct vf_descriptor){(uintptr_t)frame, frames[i].bytes, 1};
	}
	vf->held += vf->copies ? 0 : n;
	return n;
}

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

/* Those whose descriptor is done, the oldest first. Each is as soon as it is written. */
static uint32_t vf_reclaim(struct rk_port *port)
{
	struct holding_port *vf = (struct holding_port *)port;
	uint32_t done = 0;

	while (vf->held) {
		const struct vf_descriptor *from = &vf->ring[(vf->next - vf->held) % VF_SIZE];

		if (!__atomic_load_n(&from->flags, __ATOMIC_ACQUIRE))
			break;
		vf->held--;
		done++;
	}
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

static const struct rk_port_ops vf_ops = {
	.kind = "vf",
	.tx = vf_tx,
	.rx = holding_rx,
	.rx_done = holding_rx_done,
	.reclaim = vf_reclaim,
	.close = holding_close,
};

/* ---- into VM1's buffers: a descriptor each, filled as soon as it is there ------------------------------ */

static void filling_mode(struct rk_port *port, bool direct)
{
	(void)port, (void)direct;
}

static uint64_t filling_suits(const struct rk_port *port, const struct iovec *memory)
{
	(void)port;
	return (uintptr_t)memory->iov_base;
}

static uint32_t filling_room(const struct rk_port *port)
{
	return VF_SIZE - ((const struct holding_port *)port)->held;
}

static void filling_post(struct rk_port *port, const struct rk_posting *postings, uint32_t n)
{
	struct holding_port *vf = (struct holding_port *)port;

	for (uint32_t i = 0; i < n; i++)
		vf->ring[vf->next++ % VF_SIZE] =
			(struct vf_descriptor){postings[i].iova, vf->frame_bytes, 1};
	vf->held += n;
}

static uint32_t filling_filled(struct rk_port *port, struct rk_filled *filled, uint32_t n)
{
	struct holding_port *vf = (struct holding_port *)port;
	uint32_t i;

	for (i = 0; i < n && vf->held; i++) {
		const struct vf_descriptor *from = &vf->ring[(vf->next - vf->held) % VF_SIZE];

		if (!__atomic_load_n(&from->flags, __ATOMIC_ACQUIRE))
			break;
		filled[i] = (struct rk_filled){.bytes = from->length};
		vf->held--;
	}
	return i;
}

static const struct rk_direct_ops filling_direct = {
	.mode = filling_mode,
	.suits = filling_suits,
	.room = filling_room,
	.post = filling_post,
	.filled = filling_filled,
};

static const struct rk_port_ops filling_ops = {
	.kind = "direct",
	.tx = vf_tx,
	.rx = holding_rx,
	.rx_done = holding_rx_done,
	.close = holding_close,
	.direct = &filling_direct,
};

static uint32_t counted_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct stage_end *end = ((struct counted_port *)port)->end;

	(void)frames;
	end->left -= n;
	if (end->left == 0)
		rk_loop_stop(end->loop);
	return n;
}

static const struct rk_port_ops counted_ops = {
	.kind = "counted",
	.tx = counted_tx,
	.rx = holding_rx,
	.rx_done = holding_rx_done,
	.close = holding_close,
};

static struct rk_port *counted_open(struct stage_end *end)
{
	struct counted_port *counted = aligned_alloc(128, sizeof(*counted));

	if (!counted)
		return NULL;
	memset(counted, 0, sizeof(*counted));
	counted->port.ops = &counted_ops;
	counted->port.wake_fd = RK_WAKE_NONE;
	counted->end = end;
	return &counted->port;
}

struct rk_port *stage_port_open(const char *kind, uint32_t frame_bytes, struct stage_end *end)
{
	const struct rk_port_config config = {
		.kind = kind, .fd = -1, .frame_bytes = frame_bytes};
	char error[256] = "";
	struct rk_port *port;

	if (!strcmp(kind, "counted"))
		return counted_open(end);
	if (!strcmp(kind, "direct")) {
		port = calloc(1, sizeof(struct holding_port));
		if (port) {
			port->ops = &filling_ops;
			((struct holding_port *)port)->frame_bytes = frame_bytes;
		}
		return port;
	}
	if (!strcmp(kind, "held") || !strncmp(kind, "vf-", 3)) {
		port = calloc(1, sizeof(struct holding_port));
		if (port)
			port->ops = *kind == 'h' ? &holding_ops : &vf_ops;
		if (port && !strcmp(kind, "vf-copied")) {
			((struct holding_port *)port)->copies = true;
			port->copy_below = UINT32_MAX;
			port->reads = 1;
		}
		return port;
	}
	port = rk_port_open(&config, error, sizeof(error));
	if (!port)
		fprintf(stderr, "stage: port %s: %s\n", kind, error);
	return port;
}
