/* SPDX-License-Identifier: BSD-3-Clause */
/* Walking a chain of a packed ring: each descriptor is read once, then judged. */
#include "chain.h"
#include "packed_avx512.h"

/*
 * 2.8.7: of a table's entries, WRITE is the one flag that counts. DPDK's driver has it in the tables that it
 * transmits, so there nobody asks: what we only read does no harm (2.8.15).
 */
static enum rk_drop take_table(struct rk_queue *queue, uint64_t address, uint64_t rest,
			       uint32_t permission, struct chain *chain)
{
	const uint32_t count = rest_length(rest) / (uint32_t)sizeof(struct packed_desc);
	const struct packed_desc *desc = queue->table;
	const uint32_t asked = permission == RK_WRITE ? DESC_WRITE : 0;
	enum rk_drop verdict = chain_copy_table(queue, address, rest_length(rest));

	for (uint32_t i = 0; verdict == RK_SENT && i < count; i++, desc++)
		verdict = chain_take(queue, desc->address, rest_length(desc->rest),
				     rest_flags(desc->rest) & asked, permission, chain);
	return verdict;
}

static inline enum rk_drop judge(struct rk_queue *queue, uint64_t address, uint64_t rest, bool first,
				 uint32_t permission, struct chain *chain)
{
	const uint32_t flags = rest_flags(rest);

	if (flags & DESC_INDIRECT) {
		/* 2.8.19: not in a list. */
		if (!first || flags & DESC_NEXT)
			return RK_DROP_BAD_INDIRECT;
		return take_table(queue, address, rest, permission, chain);
	}
	return chain_take(queue, address, rest_length(rest), flags & DESC_WRITE, permission, chain);
}

/* The same up to the ring's end; flags: all of them. */
static inline uint32_t plain_ones(const struct rk_queue *queue, uint32_t place, uint32_t flags,
				  uint32_t count, struct packed_desc *descs, struct head *heads)
{
	struct shm *const first = packed_desc(queue, place);
	uint32_t n;

	for (n = 0; n < count; n++) {
		const uint64_t rest = shm_load64_acquire(
			shm_at(first, sizeof(*descs) * n + PACKED_REST), false);

		if (rest_flags(rest) != flags)
			break;
		descs[n].rest = rest;
		heads[n] = (struct head){rest_id(rest), 1};
	}
	shm_order_loads(queue->flags & RK_RING_COMBINING);
	for (uint32_t i = 0; i < n; i++)
		descs[i].address = shm_load64(shm_at(first, sizeof(*descs) * i));
	return n;
}

/* The same by the instructions chosen. */
static inline uint32_t plain_run(const struct rk_queue *queue, uint32_t place, uint32_t flags,
				 uint32_t count, struct packed_desc *descs, struct head *heads)
{
	uint32_t n = 0;

	flags |= packed_available(queue, place);
#if defined(__x86_64__)
	if (isa() == ISA_AVX512 && !(queue->flags & RK_RING_COMBINING))
		n = plain_fours(queue, place, flags, count, descs, heads);
	if (n == count)
		return n;
#endif
	return n + plain_ones(queue, place + n, flags, count - n, descs + n, heads + n);
}

uint32_t packed_plain(const struct rk_queue *queue, const struct place *place, uint32_t flags,
		      uint32_t count, struct packed_desc *descs, struct head *heads)
{
	const uint32_t lap = place->next < queue->size ? queue->size : 2 * queue->size;
	const uint32_t wanted = count < place->left ? count : place->left;
	const uint32_t first = wanted < lap - place->next ? wanted : lap - place->next;
	uint32_t n = plain_run(queue, place->next, flags, first, descs, heads);

	if (n == first && first < wanted)
		n += plain_run(queue, packed_after(queue, place->next, first), flags,
			       wanted - first, descs + first, heads + first);
	return n;
}

enum look packed_look(struct rk_queue *queue, const struct place *place, uint32_t permission,
		      struct chain *chain, struct head *head)
{
	uint32_t at = place->next, count = 0;
	uint64_t rest;

	chain->count = 0;
	chain->bytes = 0;
	if (place->left == 0)
		return LOOK_NONE;
	if (permission)
		chain->verdict = RK_SENT;
	do {
		if (count == place->left)
			return LOOK_FAULT;
		queue->walked++;
		rest = packed_rest(queue, at);
		if ((rest_flags(rest) & PACKED_MARKS) != packed_available(queue, at))
			return LOOK_NONE;
		count++;
		/* After a fault the rest is walked all the same: the id comes last (2.8.6). */
		if (permission && chain->verdict == RK_SENT)
			chain->verdict = judge(queue, shm_load64(packed_desc(queue, at)), rest,
					       count == 1, permission, chain);
		at = packed_after(queue, at, 1);
	} while (rest_flags(rest) & DESC_NEXT);
	if (permission)
		chain->verdict = chain_verdict(chain, chain->verdict);
	*head = (struct head){rest_id(rest), (uint16_t)count};
	chain->own = count;
	return LOOK_CHAIN;
}
