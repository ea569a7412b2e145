/* SPDX-License-Identifier: BSD-3-Clause */
/* Walking a descriptor chain that its owner may be changing: each descriptor is read once, then judged. */
#include "chain.h"
#include "split.h"

/* Where descriptors are read from: the ring's table in VM1's memory, or the private copy of an indirect one. */
struct cursor {
	const struct desc *table; /* NULL: the ring's own */
	uint32_t entries;
	uint32_t index;
	uint32_t own;    /* of the ring's, once the table is another */
	uint32_t walked; /* descriptors so far; 2.7.5.3.1 bounds the whole by the queue size */
};

static inline void read_desc(const struct rk_queue *queue, const struct cursor *at, struct desc *desc)
{
	if (at->table)
		*desc = at->table[at->index];
	else
		shm_copy_in(desc, split_desc(queue, (uint16_t)at->index), sizeof(*desc));
}

void chain_keep_header(struct rk_queue *queue, const struct chain *chain, const struct shm *window,
		       uint32_t bytes)
{
	shm_copy_in(queue->header + queue->header_bytes - chain->skip, window, bytes);
}

/* The table may span runs (2.7.5.3). */
enum rk_drop chain_copy_table(struct rk_queue *queue, uint64_t address, uint32_t length)
{
	uint64_t bus = address, left = length;
	uint8_t *to = queue->table;

	/* 2.7.5.3.1, 2.8.19: negotiated; whole entries, as many as the queue size at most. */
	if (!(queue->flags & RK_RING_INDIRECT) || length == 0 || length % sizeof(struct desc) ||
	    length / sizeof(struct desc) > queue->size)
		return RK_DROP_BAD_INDIRECT;
	while (left) {
		uint64_t run;
		struct shm *host = map_run(queue->map, bus, left, RK_READ, &run, &queue->table_hint);

		if (!host)
			return missing_table(queue, bus, left);
		shm_copy_in(to, host, run);
		to += run;
		bus += run;
		left -= run;
	}
	queue->walked += length / (uint32_t)sizeof(struct desc);
	return RK_SENT;
}

static enum rk_drop enter_table(struct rk_queue *queue, const struct desc *desc, struct cursor *at)
{
	enum rk_drop verdict;

	/* 2.7.5.3.1: not nested, not with NEXT. */
	if (at->table || (desc->flags & DESC_NEXT))
		return RK_DROP_BAD_INDIRECT;
	verdict = chain_copy_table(queue, desc->address, desc->length);
	at->own = at->walked;
	at->table = queue->table;
	at->entries = desc->length / (uint32_t)sizeof(struct desc);
	at->index = 0;
	return verdict;
}

static inline enum rk_drop walk(struct rk_queue *queue, struct cursor *at, uint32_t permission,
				struct chain *chain)
{
	enum rk_drop verdict;
	struct desc desc;

	for (;;) {
		if (at->index >= at->entries)
			return RK_DROP_BAD_NEXT;
		if (++at->walked > queue->size)
			return RK_DROP_CHAIN_LOOP;
		read_desc(queue, at, &desc);
		if (desc.flags & DESC_INDIRECT) {
			/* 2.7.5.3.2: WRITE means nothing here. */
			verdict = enter_table(queue, &desc, at);
			if (verdict != RK_SENT)
				return verdict;
			at->walked--; /* it holds no buffer: a table of exactly the queue size is legal */
			continue;
		}
		verdict = chain_take(queue, desc.address, desc.length, desc.flags & DESC_WRITE,
				     permission, chain);
		if (verdict != RK_SENT || !(desc.flags & DESC_NEXT))
			return verdict;
		at->index = desc.next;
	}
}

enum rk_drop chain_walk(struct rk_queue *queue, struct head *head, uint32_t permission,
			struct chain *chain)
{
	struct cursor at = {.entries = queue->size, .index = head->id};
	enum rk_drop verdict;

	chain->count = 0;
	chain->bytes = 0;
	verdict = walk(queue, &at, permission, chain);
	chain->own = at.table ? at.own : at.walked;
	queue->walked += at.walked;
	return chain_verdict(chain, verdict);
}
