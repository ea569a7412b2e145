/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The gen port: an endless stream of numbered frames, and a sink.
 *
 * A frame is UDP in IPv4 in Ethernet: locally administered MAC addresses, addresses of RFC 2544's
 * benchmark network, discard's port (RFC 863), no UDP checksum (RFC 768), so that the 64-bit running
 * number at the payload's start is all that differs. Frames are made at open; showing one costs that
 * number's store.
 */
#define _GNU_SOURCE
#include "port.h"

#include <endian.h>
#include <stdlib.h>

#define GEN_BYTES_MIN 60u /* Ethernet's minimum without FCS */
#define GEN_NUMBER 42u    /* 14 Ethernet, 20 IPv4, 8 UDP */
#define GEN_MEMORY (1u << 20)
#define GEN_FRAMES_MIN 16u

struct gen_port {
	struct rk_port port;
	uint8_t *memory;
	uint64_t number; /* of the oldest frame not taken off */
	uint32_t frame_bytes;
	uint32_t frame_count;
	struct iovec shown[RK_BURST_MAX];
};

static void put16(uint8_t *to, uint32_t value)
{
	to[0] = (uint8_t)(value >> 8);
	to[1] = (uint8_t)value;
}

static void gen_make(uint8_t *frame, uint32_t frame_bytes)
{
	static const uint8_t header[GEN_NUMBER] = {
		0x02, 0, 0, 0, 0, 0x02,         /* destination MAC */
		0x02, 0, 0, 0, 0, 0x01,         /* source MAC */
		0x08, 0x00,                     /* IPv4 */
		0x45, 0, 0, 0, 0, 0, 0x40, 0,   /* 20 bytes, do not fragment */
		64, 17, 0, 0,                   /* TTL, UDP */
		198, 18, 0, 1, 198, 19, 0, 1,   /* source, destination */
		0xc0, 0x00, 0x00, 0x09,         /* ports 49152, 9 */
	};
	uint32_t ip_bytes = frame_bytes - 14 > 0xffff ? 0xffff : frame_bytes - 14;
	uint32_t sum = 0;

	memcpy(frame, header, sizeof(header));
	put16(frame + 16, ip_bytes);
	put16(frame + 38, ip_bytes - 20);
	for (uint32_t at = 14; at < 34; at += 2)
		sum += (uint32_t)frame[at] << 8 | frame[at + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	put16(frame + 24, ~sum);
}

static uint32_t gen_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	(void)port;
	(void)frames;
	return n;
}

static uint32_t gen_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct gen_port *gen = (struct gen_port *)port;

	if (n > gen->frame_count)
		n = gen->frame_count;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t number = htobe64(gen->number + i);

		memcpy((uint8_t *)gen->shown[i].iov_base + GEN_NUMBER, &number, sizeof(number));
		port_show(&frames[i], &gen->shown[i], 1, gen->frame_bytes);
	}
	return n;
}

static void gen_rx_done(struct rk_port *port, uint32_t k)
{
	((struct gen_port *)port)->number += k;
}

static void gen_close(struct rk_port *port)
{
	struct gen_port *gen = (struct gen_port *)port;

	free(gen->memory);
	free(gen);
}

static const struct rk_port_ops gen_ops = {
	.kind = "gen",
	.tx = gen_tx,
	.rx = gen_rx,
	.rx_done = gen_rx_done,
	.close = gen_close,
};

struct rk_port *port_gen_open(const struct rk_port_config *config, char *error, size_t error_bytes)
{
	uint32_t stride = (config->frame_bytes + 63) & ~63u;
	struct gen_port *gen;

	if (config->frame_bytes < GEN_BYTES_MIN || config->frame_bytes > RK_FRAME_MAX)
		return port_refuse(error, error_bytes, "frames have %u to %u bytes, not %u",
				   GEN_BYTES_MIN, RK_FRAME_MAX, config->frame_bytes);
	gen = lines_zeroed(1, sizeof(*gen));
	if (!gen)
		return port_refuse(error, error_bytes, "out of memory");
	gen->port.ops = &gen_ops;
	gen->port.offloads = RK_RING_OFFLOADS; /* of frames it takes; those it makes have none */
	gen->frame_bytes = config->frame_bytes;
	gen->frame_count = GEN_MEMORY / stride;
	if (gen->frame_count > RK_BURST_MAX)
		gen->frame_count = RK_BURST_MAX;
	if (gen->frame_count < GEN_FRAMES_MIN)
		gen->frame_count = GEN_FRAMES_MIN;
	gen->memory = lines_zeroed(gen->frame_count, stride);
	if (!gen->memory) {
		free(gen);
		return port_refuse(error, error_bytes, "out of memory");
	}
	for (uint32_t i = 0; i < gen->frame_count; i++) {
		gen->shown[i].iov_base = gen->memory + (size_t)i * stride;
		gen->shown[i].iov_len = gen->frame_bytes;
		gen_make(gen->shown[i].iov_base, gen->frame_bytes);
	}
	return &gen->port;
}
