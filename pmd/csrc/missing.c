/* SPDX-License-Identifier: BSD-3-Clause */
/* What a ring lacks translations of: noted for whoever asks for them, and what was refused. */
#include "missing.h"

#include "map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool shares(const struct rk_miss *miss, uint64_t bus, uint64_t length)
{
	return miss->bus - bus < length || bus - miss->bus < miss->length;
}

static bool is_refused(const struct missing *missing, uint64_t bus, uint64_t length,
		       uint32_t permission)
{
	for (uint32_t i = 0; i < missing->refused_count; i++)
		if (missing->refused[i].permission & permission &&
		    shares(&missing->refused[i], bus, length))
			return true;
	return false;
}

/* Notes it, once, if there is room: what is left out is asked for another time. */
static void note(struct missing *missing, uint64_t bus, uint64_t length, uint32_t permission)
{
	const struct rk_miss miss = {
		.bus = bus,
		.length = length < MISSING_BYTES_MAX ? length : MISSING_BYTES_MAX,
		.permission = permission,
	};

	for (uint32_t i = 0; i < missing->count; i++)
		if (!memcmp(&missing->misses[i], &miss, sizeof(miss)))
			return;
	if (missing->count < RK_MISSES_MAX)
		missing->misses[missing->count++] = miss;
}

enum rk_drop missing_table(struct rk_queue *queue, uint64_t bus, uint64_t length)
{
	/* What follows the first page may be there: only that much is known to be missing. */
	if (!queue->missing || bus + length < bus ||
	    is_refused(queue->missing, bus, length, RK_READ))
		return RK_DROP_BAD_ADDRESS;
	note(queue->missing, bus, length, RK_READ);
	return (enum rk_drop)CHAIN_MISSING;
}

enum rk_drop missing_buffer(struct rk_queue *queue, struct chain *chain, uint64_t bus, uint64_t length,
			    uint32_t permission)
{
	if (!queue->missing || bus + length < bus ||
	    is_refused(queue->missing, bus, length, permission))
		return RK_DROP_BAD_ADDRESS;
	note(queue->missing, bus, length, permission);
	chain->missing = true;
	return RK_SENT;
}

uint32_t rk_queue_misses(struct rk_queue *queue, struct rk_miss *misses)
{
	uint32_t count;

	if (!queue->missing || queue->fault != RK_FAULT_MISSING)
		return 0;
	count = queue->missing->count;
	memcpy(misses, queue->missing->misses, count * sizeof(*misses));
	queue->missing->count = 0;
	return count;
}

int rk_queue_refuse(struct rk_queue *queue, const struct rk_miss *refused, uint32_t count)
{
	struct rk_miss *copy;

	if (!queue->missing)
		return 0;
	copy = malloc((count + 1) * sizeof(*copy));
	if (!copy) {
		errno = ENOMEM;
		return -1;
	}
	if (count)
		memcpy(copy, refused, count * sizeof(*copy));
	free(queue->missing->refused);
	queue->missing->refused = copy;
	queue->missing->refused_count = count;
	return 0;
}

void missing_free(struct missing *missing)
{
	if (missing)
		free(missing->refused);
	free(missing);
}
