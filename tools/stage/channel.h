/* SPDX-License-Identifier: BSD-3-Clause */
/* A VM1 in private memory, one queue pair, one port: what a stage has one or more of. */
#ifndef CHANNEL_H
#define CHANNEL_H

#include "stage_port.h"

struct ring {
	struct desc *desc;
	struct avail *avail;
	struct used *used;
	struct packed_desc *packed; /* NULL: a split ring */
	uint32_t commit[2];         /* docs/device.md 5.6 */
	uint32_t place;             /* packed: the oldest descriptor, by laps 0 .. 2 * size - 1 */
	bool primed;                /* packed: it has been filled before */
	uint32_t first_slot; /* its buffers are first_slot .. first_slot + size - 1 */
	bool receives;
	uint16_t seen; /* used.idx as far as VM1 has looked */
	struct rk_direction_stats stats;
	struct rk_queue *queue;
};

struct channel {
	uint8_t *memory;
	uint64_t memory_bytes;
	uint32_t frame_bytes, slot_bytes, size, regions, run;
	bool packed;
	uint64_t region_bytes; /* of those with buffers */
	uint64_t spare_lines;  /* where the first one of these can begin */
	uint64_t ring_offset;  /* of the rings in region 0 */
	struct rk_map *map;
	struct rk_port *port;
	struct rk_work work;
	struct ring transmit, receive;
	uint64_t sink; /* keeps reads whose result nobody wants */
};

/*
 * kind: as of stage_port_open(); of "gen" and "direct" VM1 receives, of "loop" and "counted" it does both, else
 * it sends. regions, run: so many buffers lie side by side in each region, then comes the next one's turn. number:
 * which it is of several, whose rings do not all lie in the same sets of a cache. False with errno; to be freed.
 */
bool channel_open(struct channel *channel, const char *kind, uint32_t frame_bytes, uint32_t size,
		  uint32_t regions, uint32_t run, bool packed, uint32_t number,
		  struct stage_end *end);
void channel_close(struct channel *channel);
/* VM1: takes back what was returned, and makes every buffer available anew. */
void channel_fill(struct channel *channel);
/* Where a buffer is; *bus becomes its address there. */
uint8_t *channel_slot(const struct channel *channel, uint32_t slot, uint64_t *bus);

#endif
