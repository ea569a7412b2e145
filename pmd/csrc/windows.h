/* SPDX-License-Identifier: BSD-3-Clause */
/* VM1's memory as a VF's DMA reaches it. */
#ifndef WINDOWS_H
#define WINDOWS_H

#include "ringk.h"

/* The VF's address of a segment, or 0: it does not reach all of it. */
static inline uint64_t window_iova(const struct rk_vf_window *windows, const struct iovec *segment)
{
	const uint64_t address = (uint64_t)(uintptr_t)segment->iov_base;

	for (uint32_t i = 0; i < RK_VF_WINDOWS && windows[i].length; i++) {
		const struct rk_vf_window *window = &windows[i];
		const uint64_t offset = address - window->address;

		if (offset < window->length)
			return segment->iov_len <= window->length - offset ? window->iova + offset : 0;
	}
	return 0;
}

/* The same of all segments of a frame; false if it does not reach one of them. */
static inline bool window_iovas(const struct rk_vf_window *windows, const struct rk_frame *frame,
				uint64_t *iovas)
{
	for (uint32_t i = 0; i < frame->segment_count; i++) {
		iovas[i] = window_iova(windows, &frame->segments[i]);
		if (!iovas[i])
			return false;
	}
	return true;
}

#endif
