/* SPDX-License-Identifier: BSD-3-Clause */
/* A ring's life: set-up from VM1's memory, publishing, calling, the end. */
#include "packed.h"
#include "split.h"
#include "turn.h"

#include "call.h"
#include "dirty.h"
#include "isa.h"
#include "lines.h"
#include "missing.h"
#include "mtu.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>
#include <unistd.h>

/* A ring part must lie in one run of the map, aligned as 2.7 asks. */
static struct shm *ring_part(const struct rk_map *map, uint64_t bus, uint64_t bytes,
			     uint64_t alignment, uint32_t permission)
{
	const struct rk_region *hint = NULL;
	uint64_t run = 0;
	struct shm *host;

	if (bus % alignment) {
		errno = EINVAL;
		return NULL;
	}
	host = map_run(map, bus, bytes, permission, &run, &hint);
	if (!host || run < bytes || (uintptr_t)host % alignment) {
		errno = EFAULT;
		return NULL;
	}
	return host;
}

/* 2.8.10.1 */
static bool find_packed_parts(const struct rk_queue *queue, const struct rk_map *map,
			      struct shm **parts)
{
	const uint32_t both = RK_READ | RK_WRITE;

	parts[0] = ring_part(map, queue->parts[0], 16ull * queue->size, 16, both);
	if (!parts[0])
		return false;
	parts[1] = ring_part(map, queue->parts[1], 4, 4, RK_READ);
	if (!parts[1])
		return false;
	parts[2] = ring_part(map, queue->parts[2], 4, 4, both);
	return parts[2] != NULL;
}

static bool find_split_parts(const struct rk_queue *queue, const struct rk_map *map,
			     struct shm **parts)
{
	const uint64_t event = queue->flags & RK_RING_EVENT_IDX ? 2 : 0;

	parts[0] = ring_part(map, queue->parts[0], 16ull * queue->size, 16, RK_READ);
	if (!parts[0])
		return false;
	parts[1] = ring_part(map, queue->parts[1], RING_ENTRIES + 2ull * queue->size + event, 2,
			     RK_READ);
	if (!parts[1])
		return false;
	parts[2] = ring_part(map, queue->parts[2], RING_ENTRIES + 8ull * queue->size + event, 4,
			     RK_READ | RK_WRITE);
	return parts[2] != NULL;
}

static bool find_parts(struct rk_queue *queue, const struct rk_map *map)
{
	struct shm *parts[3];

	if (!(queue_packed(queue) ? find_packed_parts(queue, map, parts)
				  : find_split_parts(queue, map, parts)))
		return false;
	queue->desc = parts[0];
	queue->avail = parts[1];
	queue->used = parts[2];
	return true;
}

static bool allocate(struct rk_queue *queue)
{
	/* A chain has at most size buffers, and a sane one crosses few borders of the map (2.7.4.1: MAY limit). */
	queue->chain_segments = queue->size + queue->map->count + 1024;
	queue->segments_max = RK_BURST_MAX * RK_SEGMENTS_MAX + 2 * queue->chain_segments;
	queue->segments = lines_new(queue->segments_max * sizeof(*queue->segments));
	queue->table = lines_new(queue->size * sizeof(struct desc));
	queue->gathered = lines_new(queue->size * sizeof(*queue->gathered));
	queue->pending = lines_zeroed(queue_packed(queue) ? queue->size : 1, sizeof(*queue->pending));
	while (queue->flight_mask < queue->size - 1)
		queue->flight_mask = queue->flight_mask << 1 | 1;
	queue->in_flight = lines_zeroed(queue->flight_mask + 1, sizeof(*queue->in_flight));
	queue->bounce = lines_new(RK_FRAME_MAX);
	queue->expansion = lines_new(sizeof(*queue->expansion));
	if (!queue->expansion)
		return false;
	/* Rings of one VM1 shall not number fragments alike, nor be guessed (RFC 7739). */
	if (getrandom(&queue->expansion->identification, sizeof(uint32_t), GRND_NONBLOCK) < 0)
		queue->expansion->identification = (uint32_t)cycles_now();
	expansion_forget(queue->expansion);
	queue->expansion->port = NULL;
	if (queue->flags & RK_RING_TRANSLATED) {
		queue->missing = calloc(1, sizeof(*queue->missing));
		if (!queue->missing)
			return false;
	}
	return queue->segments && queue->table && queue->gathered && queue->pending &&
	       queue->in_flight && queue->bounce;
}

/* Begins where VM1's used ring says the work was left: docs/device.md 5.3. */
static bool split_begin(struct rk_queue *queue)
{
	uint16_t used = shm_load16(shm_at(queue->used, RING_INDEX));

	queue->next = used;
	queue->used_next = used;
	queue->used_shown = used;
	split_place(queue);
	if (queue->fault != RK_FAULT_NONE) {
		errno = ERANGE;
		return false;
	}
	return true;
}

static bool begin(struct rk_queue *queue)
{
	if (!(queue_packed(queue) ? packed_begin(queue) : split_begin(queue)))
		return false;
	queue_disarm(queue); /* until somebody asks for kicks */
	return true;
}

static bool possible(const struct rk_ring_config *config)
{
	const bool packed = config->flags & RK_RING_PACKED;

	if (config->size == 0 || config->size > 32768 ||
	    (config->header_bytes != 10 && config->header_bytes != 12))
		return false;
	return packed ? config->commit != 0 : (config->size & (config->size - 1)) == 0;
}

/* PMD_KERNEL_PLAIN=0: every chain goes the long way, by which the short one is to be judged. */
static bool plain_wanted(void)
{
	const char *said = getenv("PMD_KERNEL_PLAIN");

	return !said || strcmp(said, "0") != 0;
}

struct rk_queue *rk_queue_new(const struct rk_ring_config *config, const struct rk_map *map,
			      struct rk_direction_stats *stats)
{
	struct rk_queue *queue;
	int error;

	if (!possible(config)) {
		errno = EINVAL;
		return NULL;
	}
	queue = lines_zeroed(1, sizeof(*queue));
	if (!queue)
		return NULL;
	isa_choose();
	queue->map = map;
	queue->stats = stats;
	queue->size = config->size;
	queue->mask = config->size - 1;
	queue->flags = config->flags;
	queue->header_bytes = config->header_bytes;
	queue->frame_bytes_max = mtu_frame_bytes(config->mtu);
	queue->plain = config->flags & RK_RING_ENABLED && plain_wanted();
	queue->commit = (uint32_t *)(uintptr_t)config->commit;
	flush_begin(&queue->flush, config->size, !(config->flags & RK_RING_COMBINING),
		    cycles_now());
	queue->call_fd = config->call_fd;
	queue->call_offset = config->call_offset;
	queue->kick_fd = config->kick_fd;
	queue->parts[0] = config->desc;
	queue->parts[1] = config->avail;
	queue->parts[2] = config->used;
	if (config->dirty)
		queue->dirty = dirty_new(config, map);
	if ((queue->dirty || !config->dirty) && find_parts(queue, map) && allocate(queue) &&
	    begin(queue))
		return queue;
	error = errno;
	rk_queue_free(queue);
	errno = error;
	return NULL;
}

void rk_queue_free(struct rk_queue *queue)
{
	if (!queue)
		return;
	free(queue->segments);
	free(queue->table);
	free(queue->gathered);
	free(queue->pending);
	free(queue->in_flight);
	free(queue->posted);
	free(queue->bounce);
	free(queue->expansion);
	free(queue->dirty);
	missing_free(queue->missing);
	free(queue);
}

int rk_queue_remap(struct rk_queue *queue, const struct rk_map *map)
{
	if (!find_parts(queue, map))
		return -1;
	queue->map = map;
	queue->hint = NULL;
	queue->table_hint = NULL;
	if (queue->fault == RK_FAULT_MISSING)
		queue->fault = RK_FAULT_NONE;
	if (queue->missing)
		queue->missing->count = 0;
	return 0;
}

uint32_t rk_queue_fault(const struct rk_queue *queue)
{
	return queue->fault;
}

uint32_t rk_queue_in_flight(const struct rk_queue *queue)
{
	return queue->flying;
}

void rk_queue_abandon(struct rk_queue *queue)
{
	if (queue->receives == RECEIVES_DIRECT)
		return; /* VM1 waits for a frame in each: the next queue begins with them */
	if (queue_packed(queue))
		packed_dequeue_abandon(queue);
	else
		split_dequeue_abandon(queue);
}

void rk_queue_call(struct rk_queue *queue)
{
	const uint32_t one = 1;
	ssize_t written;

	if (queue->call_fd < 0)
		return;
	if (queue->call_offset < 0) {
		call_eventfd(queue->call_fd);
	} else {
		written = pwrite(queue->call_fd, &one, sizeof(one), queue->call_offset);
		(void)written; /* a register that cannot be written is of a device that is going */
	}
	queue->stats->calls++;
}

/* Whether VM1 wants to know of what was used from `from` on. */
static bool wants_call(const struct rk_queue *queue, uint16_t from)
{
	uint16_t event;

	if (queue_packed(queue))
		return packed_wants_call(queue, from);
	if (!(queue->flags & RK_RING_EVENT_IDX))
		return !(shm_load16(shm_at(queue->avail, RING_FLAGS)) & AVAIL_NO_INTERRUPT);
	event = shm_load16(shm_at(queue->avail, RING_ENTRIES + 2u * queue->size));
	/* 2.7.7.2: used_event lies in [from, used_shown). */
	return (uint16_t)(queue->used_shown - event - 1) < (uint16_t)(queue->used_shown - from);
}

static void call_if_wanted(struct rk_queue *queue, uint16_t from)
{
	shm_fence();
	if (wants_call(queue, from))
		rk_queue_call(queue);
}

/* Slots from one place of the ring to another. */
static uint32_t distance(const struct rk_queue *queue, uint16_t from, uint16_t to)
{
	return queue_packed(queue) ? packed_distance(queue, from, to) : (uint16_t)(to - from);
}

void queue_publish(struct rk_queue *queue)
{
	const uint16_t from = queue->used_shown;

	if (queue_packed(queue))
		packed_mark(queue);
	else
		shm_store16_release(shm_at(queue->used, RING_INDEX), queue->used_next,
				    queue->flags & RK_RING_COMBINING);
	queue->used_shown = queue->used_next;
	if (!queue->coalesce) {
		call_if_wanted(queue, from);
		return;
	}
	if (!queue->call_due) {
		queue->call_from = from;
		queue->call_due = cycles_now() + queue->coalesce;
	}
	/* So far, and no further, can be told how much was used since. */
	if (distance(queue, queue->call_from, queue->used_shown) >= queue->size)
		queue_call_now(queue);
}

void queue_call_now(struct rk_queue *queue)
{
	if (!queue->call_due)
		return;
	queue->call_due = 0;
	call_if_wanted(queue, queue->call_from);
}

bool queue_has_news(const struct rk_queue *queue)
{
	if (queue_packed(queue))
		return packed_place(queue).left != 0;
	return shm_load16(shm_at(queue->avail, RING_INDEX)) != queue->next;
}

bool queue_arm(struct rk_queue *queue)
{
	if (queue_packed(queue)) /* 2.8.10; its flags say all that is needed, so no descriptor is named */
		shm_store16(shm_at(queue->used, EVENT_FLAGS), EVENT_ENABLE);
	else if (queue->flags & RK_RING_EVENT_IDX) /* 2.7.10.2 */
		shm_store16(shm_at(queue->used, RING_ENTRIES + 8u * queue->size), queue->next);
	else
		shm_store16(shm_at(queue->used, RING_FLAGS), 0);
	shm_fence();
	return queue->empty && queue_has_news(queue);
}

void queue_disarm(struct rk_queue *queue)
{
	if (queue_packed(queue)) {
		shm_store16(queue->used, 0);
		shm_store16(shm_at(queue->used, EVENT_FLAGS), EVENT_DISABLE);
	} else { /* with event index flags stay 0, and avail_event where it is: VM1 has passed it */
		shm_store16(shm_at(queue->used, RING_FLAGS),
			    queue->flags & RK_RING_EVENT_IDX ? 0 : USED_NO_NOTIFY);
	}
}
