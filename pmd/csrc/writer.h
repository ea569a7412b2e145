/* SPDX-License-Identifier: BSD-3-Clause */
/* Into the buffers of a chain, front to back, wherever one ends. */
#ifndef WRITER_H
#define WRITER_H

#include "queue.h"

/* Writes bytes into segments, front to back. */
struct writer {
	struct iovec *segment;
	size_t offset;
};

static inline void write_out(struct writer *to, const uint8_t *from, size_t bytes)
{
	while (bytes) {
		size_t room = to->segment->iov_len - to->offset;
		size_t part = bytes < room ? bytes : room;

		shm_copy_out(shm_at(to->segment->iov_base, to->offset), from, part);
		from += part;
		bytes -= part;
		to->offset += part;
		if (to->offset == to->segment->iov_len) {
			to->segment++;
			to->offset = 0;
		}
	}
}

/* A header and a frame into one buffer that holds both. flush: of the frame, which is VM1's (flush.h). */
static inline void write_plain(const struct rk_frame *frame, const uint8_t *header,
			       uint32_t header_bytes, struct shm *into, uint32_t flush)
{
	/* 10 or 12: constants compile to stores. */
	if (header_bytes == HEADER_BYTES_MAX)
		shm_copy_out(into, header, HEADER_BYTES_MAX);
	else
		shm_copy_out(into, header, HEADER_BEFORE_BUFFERS);
	into = shm_at(into, header_bytes);
	for (uint32_t i = 0; i < frame->segment_count; i++) {
		const struct iovec *segment = &frame->segments[i];

		shm_copy_frame_out(into, segment->iov_base, segment->iov_len);
		if (flush)
			flush_frame(segment->iov_base, segment->iov_len, flush);
		into = shm_at(into, segment->iov_len);
	}
}

#endif
