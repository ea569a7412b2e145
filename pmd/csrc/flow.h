/* SPDX-License-Identifier: BSD-3-Clause */
/* Which flow a frame belongs to, by a hash of its headers, and which queue pair each flow is on. */
#ifndef FLOW_H
#define FLOW_H

#include "headers.h"

/* Ethernet, two tags, IPv6 with some extension headers, two ports. */
#define FLOW_BYTES 128u

/*
 * A number that the frames of a flow share, in both directions: of the IP addresses, the protocol and the ports of
 * TCP, UDP and SCTP; without ports for fragments, so that all of a packet go one way; of the MAC addresses
 * where there is no IP. Looks at the first FLOW_BYTES only, and trusts no length in them.
 */
uint32_t flow_hash(const struct rk_frame *frame);

#define FLOW_SETS 1024u
#define FLOW_WAYS 4u

/* Flows that were learnt, 4096 of them; a new one takes the place of the one learnt first in its set. */
struct flow_set {
	uint32_t hashes[FLOW_WAYS];
	uint8_t owners[FLOW_WAYS]; /* 1 and the queue pair; 0: free */
};

struct flow_table {
	struct flow_set sets[FLOW_SETS];
};

static inline struct flow_set *flow_set_of(struct flow_table *table, uint32_t hash)
{
	return &table->sets[hash % FLOW_SETS];
}

/* The flow is on this queue pair (less than 255) from now on. */
static inline void flow_learn(struct flow_table *table, uint32_t hash, uint32_t pair)
{
	struct flow_set *set = flow_set_of(table, hash);
	uint32_t way = 0;

	while (way < FLOW_WAYS && !(set->hashes[way] == hash && set->owners[way]))
		way++;
	if (way == FLOW_WAYS)
		for (way = FLOW_WAYS - 1; way > 0; way--) {
			set->hashes[way] = set->hashes[way - 1];
			set->owners[way] = set->owners[way - 1];
		}
	set->hashes[way] = hash;
	set->owners[way] = (uint8_t)(pair + 1);
}

/* The queue pair of a flow, or otherwise of one that was never learnt. */
static inline uint32_t flow_find(struct flow_table *table, uint32_t hash, uint32_t otherwise)
{
	const struct flow_set *set = flow_set_of(table, hash);

	for (uint32_t way = 0; way < FLOW_WAYS; way++)
		if (set->hashes[way] == hash && set->owners[way])
			return set->owners[way] - 1u;
	return otherwise;
}

#endif
