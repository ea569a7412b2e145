/* SPDX-License-Identifier: BSD-3-Clause */
/* What is done for all works of a loop at once: calls that wait, and who is to tell of what while it sleeps. */
#ifndef WORKS_H
#define WORKS_H

#include "ringk.h"

/* From now on calls to VM1 may wait so long, in TSC cycles. */
void works_coalesce(struct rk_work *works, uint32_t count, uint64_t cycles);
/* Makes the calls that are due at `now`. */
void works_call_due(struct rk_work *works, uint32_t count, uint64_t now);
/* Asks VM1 for kicks, and ports to tell of frames; RK_NEWS: there is something new already. RK_ERRAND likewise. */
uint32_t works_arm(struct rk_work *works, uint32_t count);
void works_disarm(struct rk_work *works, uint32_t count);
/* Whether a port refused or holds a frame, or one of its waits for buffers: that this ends nothing tells. */
bool works_wait(const struct rk_work *works, uint32_t count);

#endif
