/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * verify --sleep: a ring with nothing left is not looked at again before its call eventfd is written. Nothing
 * else ends that, so that each call which is lost is missed: by this ring, for ever.
 */
#ifndef VM1_SLEEP_H
#define VM1_SLEEP_H

#include "engine.h"

/* Asks every ring in use for calls, and sleeps until one is called, or until_ns. */
void sleep_until_called(struct vm1 *vm1, uint64_t until_ns);
/* How many rings sleep although something of theirs is used. */
uint32_t sleep_count_lost(struct vm1 *vm1);

#endif
