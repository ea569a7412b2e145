/* SPDX-License-Identifier: BSD-3-Clause */
/* Frames longer than most: tagged ones, segments in one, and those that are too long. */
#include "mtu.h"

#include "offload.h"

uint32_t mtu_frame_bytes(uint32_t mtu)
{
	return mtu ? mtu + ETHERNET_BYTES : UINT32_MAX;
}

static uint32_t tags_bytes(const struct rk_frame *frame)
{
	uint8_t start[ETHERNET_BYTES + TAGS_MAX * TAG_BYTES];
	struct offload_reader from = {.segment = frame->segments};
	uint32_t bytes = 0;

	offload_read(&from, start, sizeof(start)); /* an MTU is 68 at least, so it has as many */
	while (bytes < TAGS_MAX * TAG_BYTES &&
	       headers_is_tag(get16(start + ETHERNET_BYTES - 2 + bytes)))
		bytes += TAG_BYTES;
	return bytes;
}

bool mtu_exceeded(const struct rk_queue *queue, const struct rk_frame *frame)
{
	const uint32_t excess = frame->bytes - queue->frame_bytes_max;

	if (frame->offload.gso_type & ~RK_GSO_ECN)
		return false;
	return excess > TAGS_MAX * TAG_BYTES || excess > tags_bytes(frame);
}

uint32_t mtu_run(const struct rk_queue *queue, const struct rk_frame *frames, uint32_t count)
{
	uint32_t n = 0;

	while (n < count && !over_mtu(queue, &frames[n]))
		n++;
	return n;
}
