/* SPDX-License-Identifier: BSD-3-Clause */
/* A split ring as the device sees it. Private state is frozen at start; VM1 cannot change it. */
#ifndef QUEUE_H
#define QUEUE_H

#include "map.h"

#include <stdbool.h>

/* 2.7.5 */
#define DESC_NEXT 1u
#define DESC_WRITE 2u
#define DESC_INDIRECT 4u

struct desc {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
	uint16_t next;
};

/* 2.7.6 and 2.7.8: where the parts of avail and used rings lie. */
#define RING_FLAGS 0u
#define RING_INDEX 2u
#define RING_ENTRIES 4u
#define AVAIL_NO_INTERRUPT 1u
#define USED_NO_NOTIFY 1u

struct used_element {
	uint32_t id;
	uint32_t length;
};

/* What the walk of one chain found: segments[0..count), the first `skip` bytes left out. */
struct chain {
	struct iovec *segments;
	uint32_t count;
	uint32_t skip;  /* in: bytes to leave out at the front (the virtio-net header) */
	uint64_t bytes; /* in all descriptors, the skipped ones included */
};

/* A receive chain taken for a frame: what goes into used ring and how much it holds. */
struct gathered {
	uint16_t head;
	uint64_t capacity;
};

/*
 * What one turn may cost, in descriptors read and entries of indirect tables copied: rings of one lcore must
 * not wait for one that is all long chains of nothing. A turn begins no chain (dequeue) or frame
 * (enqueue) after TURN_WALK_MAX; a frame is not gathered for beyond GATHER_WALK_MAX.
 */
#define TURN_WALK_MAX 4096u
#define GATHER_WALK_MAX 65536u

/* A chain taken from the ring and not yet returned. */
struct in_flight {
	uint16_t head;
	bool held;        /* the port has it */
	uint32_t verdict; /* enum rk_drop */
	uint32_t bytes;   /* of its frame */
};

struct rk_queue {
	struct shm *desc, *avail, *used;
	const struct rk_map *map;
	const struct rk_region *hint;       /* where the last buffer was */
	const struct rk_region *table_hint; /* where the last indirect table was */
	struct rk_direction_stats *stats;
	uint32_t size, mask, flags, header_bytes;
	uint32_t fault;
	uint32_t walked;    /* in this turn: see TURN_WALK_MAX */
	uint16_t next;      /* first available entry not yet consumed */
	uint16_t used_next; /* our used.idx, published or about to be; behind next by what is in flight */
	struct in_flight *in_flight; /* size entries: those of [used_next, next), by ring slot */
	int call_fd;
	int64_t call_offset;
	struct desc *table;        /* private copy of an indirect table: size entries */
	struct gathered *gathered; /* size entries */
	uint8_t *bounce;           /* one frame of too many segments, made one */
	struct iovec *segments;    /* pool of segments_max */
	uint32_t chain_segments;   /* most that one chain can give */
	uint32_t segments_max;
};

static inline uint32_t queue_in_flight(const struct rk_queue *queue)
{
	return (uint16_t)(queue->next - queue->used_next);
}

/*
 * How many chains are available, at most limit; 0 too when the ring is, or now becomes, quarantined.
 * avail.idx is read once; the bound on what follows.
 */
static inline uint32_t queue_available(struct rk_queue *queue)
{
	uint16_t index = shm_load16_acquire(shm_at(queue->avail, RING_INDEX));
	uint16_t pending = (uint16_t)(index - queue->next);

	/* 2.7.6: nothing of it can be trusted. What is in flight is VM1's to reuse only once returned. */
	if (pending > queue->size - queue_in_flight(queue)) {
		queue->fault = RK_FAULT_INDEX_JUMP;
		return 0;
	}
	return pending;
}

/* The i-th available entry from next on. */
static inline uint16_t queue_head(const struct rk_queue *queue, uint32_t i)
{
	uint32_t slot = (queue->next + i) & queue->mask;

	return shm_load16(shm_at(queue->avail, RING_ENTRIES + 2u * slot));
}

/* Returns a consumed chain: its used element is written, to be published by queue_publish(). */
static inline void queue_return(struct rk_queue *queue, uint16_t head, uint32_t length)
{
	struct used_element element = {head, length};
	uint32_t slot = queue->used_next & queue->mask;

	shm_copy_out(shm_at(queue->used, RING_ENTRIES + 8u * slot), &element, sizeof(element));
	queue->used_next++;
}

/* Consumes and returns one chain. */
static inline void queue_put_used(struct rk_queue *queue, uint16_t head, uint32_t length)
{
	queue_return(queue, head, length);
	queue->next++;
}

/* Publishes what was put since `before`, and calls VM1 if it wants to know (2.7.7.2). */
void queue_publish(struct rk_queue *queue, uint16_t before);

/*
 * Walks the chain of head into chain->segments (at least queue->chain_segments of room).
 * permission RK_READ: all descriptors must be device-readable; RK_WRITE: device-writable. Returns
 * RK_SENT or the first fault in walking order. A chain for reading fails as RK_DROP_OVERSIZE at the descriptor
 * that makes it longer than header and RK_FRAME_MAX; of one for writing, descriptors after as
 * many bytes are walked but not translated. So a chain costs at most size descriptors and one long translation.
 */
enum rk_drop chain_walk(struct rk_queue *queue, uint16_t head, uint32_t permission,
			struct chain *chain);

/* One turn each; return the chains completed. */
uint32_t dequeue_turn(struct rk_queue *queue, struct rk_port *port, uint32_t burst);
uint32_t enqueue_turn(struct rk_queue *queue, struct rk_port *port, uint32_t burst);

/* Takes nothing new, and returns what the port is done with; what is left in flight. */
uint32_t dequeue_drain(struct rk_queue *queue, struct rk_port *port);

static inline uint64_t cycles_now(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
	uint64_t value;

	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
	return value;
#else
#error "no cycle counter known for this machine"
#endif
}

#endif
