/* SPDX-License-Identifier: BSD-3-Clause */
/* The driver's side of a virtqueue: what is given is published, what is used is judged. */
#include "lines.h"
#include "virtqueue.h"

#define AVAIL_NO_INTERRUPT 1u  /* 2.7.6 */
#define USED_NO_NOTIFY 1u      /* 2.7.8 */
#define EVENT_FLAGS_OFFSET 2u  /* 2.8.14 */
#define EVENT_DISABLE 1u

void virtqueue_disarm(struct virtqueue *queue)
{
	if (queue->packed)
		dma_write16(queue->driver + EVENT_FLAGS_OFFSET, EVENT_DISABLE);
	else
		dma_write16(queue->driver, AVAIL_NO_INTERRUPT);
}

int virtqueue_init(struct virtqueue *queue, const struct rk_virtio_queue *config, uint32_t features,
		   uint32_t buffer_bytes)
{
	*queue = (struct virtqueue){
		.descriptors = (uint8_t *)(uintptr_t)config->descriptor_area,
		.driver = (uint8_t *)(uintptr_t)config->driver_area,
		.device = (uint8_t *)(uintptr_t)config->device_area,
		.buffers = (uint8_t *)(uintptr_t)config->buffers,
		.buffers_iova = config->buffers_iova,
		.buffer_bytes = buffer_bytes,
		.notify = config->notify,
		.number = (uint16_t)config->number,
		.packed = features & RK_RING_PACKED,
		.in_order = features & RK_RING_IN_ORDER,
		.mask = config->size - 1,
		.span = lines_zeroed(config->size, sizeof(*queue->span)),
	};
	if (!queue->span)
		return -1;
	virtqueue_disarm(queue);
	return 0;
}

void virtqueue_restart(struct virtqueue *queue)
{
	queue->next = queue->published = queue->used_at = queue->oldest = 0;
	queue->available = queue->used_seen = queue->used_now = 0;
	queue->chains = 0;
	queue->in_batch = false;
	memset(queue->span, 0, (queue->mask + 1) * sizeof(*queue->span));
	virtqueue_disarm(queue);
}

void virtqueue_free(struct virtqueue *queue)
{
	free(queue->span);
}

static bool wants_notification(const struct virtqueue *queue)
{
	if (queue->packed) {
		uint16_t flags = dma_read16(queue->device + EVENT_FLAGS_OFFSET);

		return (flags & 3) != EVENT_DISABLE;
	}
	return !(dma_read16(queue->device) & USED_NO_NOTIFY);
}

void virtqueue_publish(struct virtqueue *queue)
{
	dma_publish();
	if (queue->packed)
		dma_write16(queue->descriptors + 16u * (queue->published & queue->mask) + 14,
			    queue->batch_flags);
	else
		dma_write16(queue->driver + 2, queue->available);
	queue->published = queue->next;
	dma_fence(); /* 2.7.13.4.1, 2.8.21.3.1 */
	if (wants_notification(queue))
		mmio_write16(queue->notify, queue->number);
}

static bool find_trouble(struct virtqueue *queue, uint32_t trouble)
{
	queue->trouble = trouble;
	return false;
}

static bool split_report(struct virtqueue *queue)
{
	const uint8_t *element;
	uint32_t id;

	if (queue->used_seen == queue->used_now) {
		queue->used_now = dma_read16(queue->device + 2);
		if (queue->used_seen == queue->used_now)
			return false;
		if ((uint16_t)(queue->used_now - queue->used_seen) > queue->chains)
			return find_trouble(queue, RK_VIRTIO_BAD_INDEX);
		dma_consume();
	}
	element = queue->device + 4 + 8u * (queue->used_seen & queue->mask);
	id = dma_read32(element);
	if (!virtqueue_has(queue, id))
		return find_trouble(queue, RK_VIRTIO_BAD_ID);
	queue->last = (uint16_t)id;
	queue->last_bytes = dma_read32(element + 4);
	return true;
}

/* Where the device reports next. */
static const uint8_t *packed_next(const struct virtqueue *queue)
{
	return queue->descriptors + 16u * (queue->used_at & queue->mask);
}

static bool packed_used(const struct virtqueue *queue, const uint8_t *next)
{
	const uint16_t wanted = queue->used_at & (queue->mask + 1)
					? 0
					: VIRTQUEUE_USED | VIRTQUEUE_AVAIL;

	/* Of a ring without chains nothing was written for the device since it was last here. */
	return (dma_read16(next + 14) & (VIRTQUEUE_USED | VIRTQUEUE_AVAIL)) == wanted && queue->chains;
}

static bool packed_report(struct virtqueue *queue)
{
	const uint8_t *from = packed_next(queue);
	uint16_t id;

	if (!packed_used(queue, from))
		return false;
	dma_consume();
	id = dma_read16(from + 12);
	if (!virtqueue_has(queue, id))
		return find_trouble(queue, RK_VIRTIO_BAD_ID);
	queue->last = id;
	queue->last_bytes = dma_read32(from + 8);
	return true;
}

/* The chain that is the device's turn where one report stands for a batch (2.7.9, 2.8.9). */
static void take_in_order(struct virtqueue *queue, struct virtqueue_used *used)
{
	const uint16_t id = (uint16_t)(queue->oldest & queue->mask);

	queue->in_batch = id != queue->last;
	if (queue->in_batch)
		*used = (struct virtqueue_used){.id = id, .whole = true};
	queue->oldest += queue->span[id] & SPAN_COUNT;
}

bool virtqueue_take(struct virtqueue *queue, struct virtqueue_used *used)
{
	if (queue->trouble)
		return false;
	if (!queue->in_batch && !(queue->packed ? packed_report(queue) : split_report(queue)))
		return false;
	/* In order: the batch has more chains than reports were counted. */
	if (!queue->packed && queue->used_seen == queue->used_now)
		return find_trouble(queue, RK_VIRTIO_BAD_INDEX);
	*used = (struct virtqueue_used){.id = queue->last, .bytes = queue->last_bytes};
	if (queue->in_order)
		take_in_order(queue, used);
	queue->used_seen++;
	queue->used_at += queue->span[used->id] & SPAN_COUNT;
	queue->span[used->id] |= SPAN_DONE;
	queue->chains--;
	return true;
}

bool virtqueue_arm(struct virtqueue *queue)
{
	if (queue->packed)
		dma_write16(queue->driver + EVENT_FLAGS_OFFSET, 0);
	else
		dma_write16(queue->driver, 0);
	dma_fence(); /* 2.7.7.1, 2.8.10: the wish before the look; the device does the reverse */
	if (queue->trouble)
		return false;
	if (queue->packed)
		return packed_used(queue, packed_next(queue));
	return dma_read16(queue->device + 2) != queue->used_seen;
}
