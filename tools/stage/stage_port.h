/* SPDX-License-Identifier: BSD-3-Clause */
/* The port of a stage: one of the kernel's, or one that holds what it takes until it is asked, as one whose
 * VF reads VM1's memory does. */
#ifndef STAGE_PORT_H
#define STAGE_PORT_H

#include "../../pmd/csrc/ringk.h"

/* A loop that ends once so many more frames were taken by its ports. */
struct stage_end {
	struct rk_loop *loop;
	uint64_t left;
};

/*
 * kind: "held"; "vf-held" and "vf-copied", with a VF's descriptors as well, of 2048 bytes at most; "direct",
 * whose VF fills VM1's buffers with frames of frame_bytes; "counted", as the kernel's null, and gives the loop
 * its end; or the kernel's "null", "copy", "loop", "gen". NULL, said on stderr, if it cannot be.
 */
struct rk_port *stage_port_open(const char *kind, uint32_t frame_bytes, struct stage_end *end);

#endif
