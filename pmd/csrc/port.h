/* SPDX-License-Identifier: BSD-3-Clause */
/* What the ports share: their openers, and the parts that more than one needs. */
#ifndef PORT_H
#define PORT_H

#include <string.h>
#include <sys/socket.h>

#include "flush.h"
#include "lines.h"
#include "ringk.h"
#include "shm.h"

/* Opens a port of one kind; NULL and a cause in error where it cannot: config->fd is then still the
 * caller's. */
typedef struct rk_port *port_opener(const struct rk_port_config *config, char *error,
				    size_t error_bytes);

port_opener port_null_open, port_copy_open, port_loop_open, port_patch_open, port_gen_open, port_tap_open,
	port_packet_open, port_dgram_open, port_pcap_open, port_igbvf_open, port_virtio_open, port_xdp_open,
	port_down_open;

/* Writes the cause. Returns NULL, for an opener to return. */
__attribute__((format(printf, 3, 4))) void *port_refuse(char *error, size_t error_bytes,
							const char *format, ...);

/* ---- sending ---------------------------------------------------------------------------------- */

/* The verdict on a frame that a send refused with this errno. RK_SENT: not now, try again later. */
uint32_t port_verdict(int error);

/* A socket that takes one frame a message. */
struct port_sender {
	int fd;
	uint32_t (*verdict)(int fd, int error); /* as port_verdict() */
	struct mmsghdr messages[RK_BURST_MAX];  /* name and length of the address are set at open */
};

/* tx() of such a port: the kernel reads VM1's memory, once. */
uint32_t port_send(struct port_sender *sender, struct rk_frame *frames, uint32_t n);
/* Gives k frames from the first on the verdict; returns k. */
uint32_t port_drop(struct rk_frame *frames, uint32_t k, uint32_t verdict);

/* ---- receiving -------------------------------------------------------------------------------- */

#define PORT_POOL 64u

/* Received frames, oldest at first, in buffers of RK_FRAME_MAX. iov_len is the frame's length. */
struct port_pool {
	uint8_t *memory;
	uint32_t first, count;
	struct iovec buffers[PORT_POOL];
};

int port_pool_open(struct port_pool *pool); /* 0, or -1 for no memory */
void port_pool_close(struct port_pool *pool);
/* The free buffers at *slot that lie side by side: as many, up to want. */
uint32_t port_pool_space(struct port_pool *pool, uint32_t want, uint32_t *slot);
uint32_t port_pool_show(struct port_pool *pool, struct rk_frame *frames, uint32_t n);
void port_pool_done(struct port_pool *pool, uint32_t k);

/* Shows one frame of segment_count segments. */
static inline void port_show(struct rk_frame *frame, struct iovec *segments, uint32_t segment_count,
			     uint32_t bytes)
{
	frame->segments = segments;
	frame->segment_count = segment_count;
	frame->bytes = bytes;
	frame->verdict = RK_SENT;
	frame->offload = (struct rk_offload){0};
}

/* ---- copying ---------------------------------------------------------------------------------- */

/* Copies a frame out of VM1's memory, to be judged by nobody: some bytes are read twice. flush: port->flush. */
static inline void port_copy_frame(uint8_t *to, const struct rk_frame *frame, uint32_t flush)
{
	for (uint32_t i = 0; i < frame->segment_count; i++) {
		const struct iovec *segment = &frame->segments[i];

		shm_copy_frame_in(to, segment->iov_base, segment->iov_len);
		if (flush)
			flush_frame(segment->iov_base, segment->iov_len, flush);
		to += segment->iov_len;
	}
}

/* The same into a ring of end bytes, from at on and over its end; returns where it goes on. */
static inline uint32_t port_copy_around(uint8_t *ring, uint32_t end, uint32_t at,
					const struct rk_frame *frame, uint32_t flush)
{
	for (uint32_t i = 0; i < frame->segment_count; i++) {
		struct shm *from = frame->segments[i].iov_base;
		size_t left = frame->segments[i].iov_len;

		while (left) {
			size_t part = left < end - at ? left : end - at;

			shm_copy_frame_in(ring + at, from, part);
			from = shm_at(from, part);
			left -= part;
			at = (at + (uint32_t)part) % end;
		}
		if (flush)
			flush_frame(frame->segments[i].iov_base, frame->segments[i].iov_len, flush);
	}
	return at;
}

#endif
