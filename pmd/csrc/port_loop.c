/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The loop port: what VM1 sends comes back to it, in order, none lost.
 *
 * A byte ring of records: length and offload, the frame, padding to 8 bytes. A record is never split;
 * where it does not fit before the end, a length of SKIP sends the reader to the start. Used bytes run
 * from read to write; the ring never fills completely, so read == write means empty. An empty ring
 * starts over at 0: in the usual case the same few cache lines serve every burst.
 */
#define _GNU_SOURCE
#include "port.h"

#include <stdlib.h>

#define LOOP_BYTES (1u << 20)
#define LOOP_HEADER ((uint32_t)sizeof(struct loop_record))
#define LOOP_SKIP UINT32_MAX

struct loop_record {
	uint32_t length;
	struct rk_offload offload;
	uint16_t reserved;
};

struct loop_port {
	struct rk_port port;
	uint8_t *memory;
	uint32_t read, write;
	struct iovec shown[RK_BURST_MAX];
};

_Static_assert(LOOP_BYTES > 2 * (RK_FRAME_MAX + LOOP_HEADER + 8), "an empty ring takes any frame");

static uint32_t record_bytes(uint32_t frame_bytes)
{
	return LOOP_HEADER + ((frame_bytes + 7) & ~7u);
}

static void record_write(struct loop_port *loop, uint32_t at, const struct loop_record *record)
{
	memcpy(loop->memory + at, record, sizeof(*record));
}

/* The record at *at, after following SKIP. */
static struct loop_record record_read(const struct loop_port *loop, uint32_t *at)
{
	struct loop_record record;

	memcpy(&record, loop->memory + *at, sizeof(record));
	if (record.length == LOOP_SKIP) {
		*at = 0;
		memcpy(&record, loop->memory, sizeof(record));
	}
	return record;
}

/* Where a record of so many bytes goes, or LOOP_BYTES for nowhere now. A header's room is kept after
 * every record, for SKIP. */
static uint32_t loop_place(struct loop_port *loop, uint32_t bytes)
{
	if (loop->write < loop->read)
		return loop->write + bytes < loop->read ? loop->write : LOOP_BYTES;
	if (loop->write + bytes + LOOP_HEADER <= LOOP_BYTES)
		return loop->write;
	if (bytes >= loop->read)
		return LOOP_BYTES;
	record_write(loop, loop->write, &(struct loop_record){.length = LOOP_SKIP});
	return 0;
}

static uint32_t loop_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct loop_port *loop = (struct loop_port *)port;

	if (loop->read == loop->write)
		loop->read = loop->write = 0;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t bytes, at;

		if (frames[i].bytes > RK_FRAME_MAX) {
			frames[i].verdict = RK_DROP_OVERSIZE;
			continue;
		}
		bytes = record_bytes(frames[i].bytes);
		at = loop_place(loop, bytes);
		if (at == LOOP_BYTES)
			return i;
		record_write(loop, at, &(struct loop_record){frames[i].bytes, frames[i].offload, 0});
		port_copy_frame(loop->memory + at + LOOP_HEADER, &frames[i]);
		loop->write = at + bytes;
	}
	return n;
}

static uint32_t loop_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct loop_port *loop = (struct loop_port *)port;
	uint32_t at = loop->read;
	uint32_t i;

	if (n > RK_BURST_MAX)
		n = RK_BURST_MAX;
	for (i = 0; i < n && at != loop->write; i++) {
		const struct loop_record record = record_read(loop, &at);

		loop->shown[i].iov_base = loop->memory + at + LOOP_HEADER;
		loop->shown[i].iov_len = record.length;
		port_show(&frames[i], &loop->shown[i], 1, record.length);
		frames[i].offload = record.offload;
		at += record_bytes(record.length);
	}
	return i;
}

static void loop_rx_done(struct rk_port *port, uint32_t k)
{
	struct loop_port *loop = (struct loop_port *)port;

	while (k-- > 0) {
		const struct loop_record record = record_read(loop, &loop->read);

		loop->read += record_bytes(record.length);
	}
}

static void loop_close(struct rk_port *port)
{
	struct loop_port *loop = (struct loop_port *)port;

	free(loop->memory);
	free(loop);
}

static const struct rk_port_ops loop_ops = {
	.kind = "loop",
	.tx = loop_tx,
	.rx = loop_rx,
	.rx_done = loop_rx_done,
	.close = loop_close,
};

struct rk_port *port_loop_open(const struct rk_port_config *config, char *error, size_t error_bytes)
{
	struct loop_port *loop = calloc(1, sizeof(*loop));

	(void)config;
	if (!loop)
		return port_refuse(error, error_bytes, "out of memory");
	loop->port.ops = &loop_ops;
	loop->port.offloads = RK_RING_OFFLOADS;
	loop->port.wake_fd = RK_WAKE_NONE;
	loop->port.reads = 1;
	loop->memory = port_memory(LOOP_BYTES);
	if (!loop->memory) {
		free(loop);
		return port_refuse(error, error_bytes, "out of memory");
	}
	return &loop->port;
}
