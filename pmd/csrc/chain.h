/* SPDX-License-Identifier: BSD-3-Clause */
/* What walking a chain is made of, in either layout. */
#ifndef CHAIN_H
#define CHAIN_H

#include "queue.h"

/* Judges one buffer and takes it into the chain. */
enum rk_drop chain_take(struct rk_queue *queue, uint64_t address, uint32_t length, bool writable,
			uint32_t permission, struct chain *chain);
/* Copies an indirect table of length bytes to queue->table, where its form is legal. */
enum rk_drop chain_copy_table(struct rk_queue *queue, uint64_t address, uint32_t length);

#endif
