/* SPDX-License-Identifier: BSD-3-Clause */
/* Patch and loop ports find the other end among the works of their loop (port_patch.c). Not while it runs. */
#ifndef PATCH_H
#define PATCH_H

#include "ringk.h"

/*
 * Joins the ends among these works, which stay where they are until patch_part(). The n-th queue pair of an end sends
 * to the n-th of the other that receives; where that has fewer, round and round.
 */
void patch_join(struct rk_work *works, uint32_t count);
void patch_part(struct rk_work *works, uint32_t count);
/* patch_join() of a work that is run by itself, if its port is a loop. */
void patch_join_loop(struct rk_work *work);

#endif
