/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver's side of a virtqueue, split (2.7) or packed (2.8), of a device that is not to be trusted.
 *
 * Chains are described in ring order, which VIRTIO_F_IN_ORDER wants (2.7.9, 2.8.9); a chain's id is the slot of
 * its first descriptor, or whatever its owner says where chains are single descriptors. The device may
 * write anything into the whole of the queue's memory at any time: nothing written here is read back,
 * and what it reports is compared with `span`, which is private.
 */
#ifndef VIRTQUEUE_H
#define VIRTQUEUE_H

#include "mmio.h"
#include "ringk.h"

#include <stdbool.h>

#define VIRTQUEUE_NEXT 1u
#define VIRTQUEUE_WRITE 2u
/* Packed: both equal the ring's wrap counter where used, and AVAIL alone where available (2.8.1). */
#define VIRTQUEUE_AVAIL (1u << 7)
#define VIRTQUEUE_USED (1u << 15)

/* In span: how many descriptors the chain has that the device was given, 0 where it has none. And: */
#define SPAN_COUNT 0x3fffu
#define SPAN_DONE 0x4000u /* reported used, but not yet taken back */
#define SPAN_HELD 0x8000u /* its owner's */

struct virtqueue {
	uint8_t *descriptors, *driver, *device; /* the areas of 2.6 */
	uint8_t *buffers;
	uint64_t buffers_iova;
	uint32_t buffer_bytes;
	uint64_t notify; /* the register's address */
	uint16_t number;
	bool packed, in_order;
	uint32_t mask;
	/* These run on; masked they are slots. */
	uint32_t next;      /* the next one to describe */
	uint32_t published; /* packed: what is described from here on the device does not see yet */
	uint32_t used_at;   /* packed: where the device reports next */
	uint32_t oldest;    /* in order: the first chain not taken */
	uint16_t available; /* split: idx of the available ring, once published */
	uint16_t used_seen; /* split: reports taken */
	uint16_t used_now;  /* split: idx of the used ring, as read last */
	uint16_t batch_flags; /* packed: of the descriptor at `published` */
	uint32_t chains;    /* the device has */
	bool in_batch;      /* in order: the report at hand stands for more chains than were taken */
	uint16_t last;      /* in order: the last one it stands for */
	uint32_t last_bytes;
	uint32_t trouble;   /* enum rk_virtio_trouble */
	uint16_t *span;
};

/* What virtqueue_take() found. */
struct virtqueue_used {
	uint16_t id;
	bool whole;     /* in order, and passed over: all of the chain was used (2.7.9) */
	uint32_t bytes; /* that the device says to have written; unjudged */
};

/* 0, or -1 for no memory. The queue is empty, and wants no interrupts. */
int virtqueue_init(struct virtqueue *queue, const struct rk_virtio_queue *config, uint32_t features,
		   uint32_t buffer_bytes);
void virtqueue_free(struct virtqueue *queue);
/* The device was made to forget the queue, whose areas are zeroed: it is as after virtqueue_init(), but for trouble. */
void virtqueue_restart(struct virtqueue *queue);
/* Shows the device all chains described so far, and notifies it if it wants that. */
void virtqueue_publish(struct virtqueue *queue);
/* The next chain that the device reports, which is then no longer its own; false if there is none, or
 * there is trouble. Its span stays, with SPAN_DONE. */
bool virtqueue_take(struct virtqueue *queue, struct virtqueue_used *used);

/* Has the device interrupt when it uses a chain; true if it has used one that was not taken. */
bool virtqueue_arm(struct virtqueue *queue);
/* No interrupts any more; one may still come. */
void virtqueue_disarm(struct virtqueue *queue);

/* Whether the device has a chain of that id. */
static inline bool virtqueue_has(const struct virtqueue *queue, uint32_t id)
{
	return id <= queue->mask && queue->span[id] && !(queue->span[id] & SPAN_DONE);
}

static inline uint8_t *virtqueue_buffer(const struct virtqueue *queue, uint32_t slot)
{
	return queue->buffers + (size_t)slot * queue->buffer_bytes;
}

static inline uint64_t virtqueue_buffer_iova(const struct virtqueue *queue, uint32_t slot)
{
	return queue->buffers_iova + (uint64_t)slot * queue->buffer_bytes;
}

/* Begins a chain of count descriptors, to be described next; held: SPAN_HELD or 0. */
static inline void virtqueue_begin(struct virtqueue *queue, uint16_t id, uint32_t count,
				   uint16_t held)
{
	queue->span[id] = (uint16_t)(count | held);
	queue->chains++;
	if (!queue->packed)
		dma_write16(queue->driver + 4 + 2u * (queue->available++ & queue->mask), id);
}

/* Describes a part of the chain that was begun last, 0 the first. */
static inline void virtqueue_describe(struct virtqueue *queue, uint16_t id, uint32_t part,
				      uint64_t iova, uint32_t bytes, uint16_t flags)
{
	const uint32_t at = queue->next++;
	const uint32_t slot = (queue->packed ? at : id + part) & queue->mask;
	uint8_t *to = queue->descriptors + 16u * slot;

	dma_write64(to, iova);
	dma_write32(to + 8, bytes);
	if (!queue->packed) {
		dma_write16(to + 12, flags);
		dma_write16(to + 14, (uint16_t)((slot + 1) & queue->mask));
		return;
	}
	dma_write16(to + 12, id);
	flags |= at & (queue->mask + 1) ? VIRTQUEUE_USED : VIRTQUEUE_AVAIL;
	if (at == queue->published)
		queue->batch_flags = flags; /* the device does not look past this one */
	else
		dma_write16(to + 14, flags);
}

#endif
