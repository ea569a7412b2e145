/* SPDX-License-Identifier: BSD-3-Clause */
/* Into the buffers of a chain, front to back, wherever one ends. */
#ifndef WRITER_H
#define WRITER_H

#include "shm.h"

#include <sys/uio.h>

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

#endif
