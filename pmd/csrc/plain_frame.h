/* SPDX-License-Identifier: BSD-3-Clause */
/* One frame of what VM1 transmits. */
#ifndef PLAIN_FRAME_H
#define PLAIN_FRAME_H

#include "plain.h"

#define ETHERNET_HEADER_BYTES 14u

static inline void set_frame(struct rk_frame *frame, struct iovec *segments, uint32_t count,
			     uint32_t bytes)
{
	*frame = (struct rk_frame){
		.segments = segments,
		.segment_count = count,
		.bytes = bytes,
	};
}

#endif
