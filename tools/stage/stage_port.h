/* SPDX-License-Identifier: BSD-3-Clause */
/* The port of a stage: one of the kernel's, or one that holds what it takes until it is asked, as one whose
 * VF reads VM1's memory does. */
#ifndef STAGE_PORT_H
#define STAGE_PORT_H

#include "../../pmd/csrc/ringk.h"

/*
 * kind: "held"; "vf-held" and "vf-copied", with a VF's descriptors as well, of 2048 bytes at most; "direct", whose VF fills
 * VM1's buffers with frames of frame_bytes; or the kernel's "null", "copy", "loop", "gen". NULL, said on stderr, if it
 * cannot be.
 */
struct rk_port *stage_port_open(const char *kind, uint32_t frame_bytes);

#endif
