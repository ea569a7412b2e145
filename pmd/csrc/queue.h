/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A ring as the device sees it, of either layout. Private state is frozen at start; VM1 cannot change it.
 *
 * Chains are looked at from a place on, without being taken; then, in ring order, they are taken
 * and, at once or once the port is done with them, returned. What is returned VM1 sees when it is
 * published. A layout's own part of that is in split.h and packed.h; layout.h chooses.
 */
#ifndef QUEUE_H
#define QUEUE_H

#include "cycles.h"
#include "expansion.h"
#include "flush.h"
#include "map.h"

#include <stdbool.h>

/* 2.7.5 */
#define DESC_NEXT 1u
#define DESC_WRITE 2u
#define DESC_INDIRECT 4u

/* Whether a descriptor, of either layout, is the last one in its cache line. */
static inline bool ends_line(const struct shm *desc)
{
	return ((uintptr_t)desc & (SHM_LINE - 1)) == SHM_LINE - 16u;
}

struct desc {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
	uint16_t next;
};

/* struct virtio_net_hdr, 5.1.6: what rk_offload says, then num_buffers, which the short form lacks. */
#define HEADER_BEFORE_BUFFERS 10u
#define HEADER_BYTES_MAX 12u

/*
 * A point of the ring. Split: an index into the available ring, free-running, and how many chains are available
 * from there. Packed: a descriptor (packed.h), and how many from there on can be VM1's.
 */
struct place {
	uint16_t next;
	uint32_t left;
};

/* A chain of the ring: the name by which it is returned, and how far the next one is from it. */
struct head {
	uint16_t id;
	uint16_t span; /* split: 1; packed: its descriptors */
};

/* A used descriptor of a packed ring, not yet written. */
struct pending {
	uint64_t rest;  /* all of it but the address (packed.h) */
	uint16_t place;
	bool more; /* the next one holds more of the same frame */
};

/* What there is at a place. */
enum look {
	LOOK_NONE,
	LOOK_CHAIN,
	LOOK_FAULT, /* the ring's accounting cannot be trusted from here on */
};

/* What the walk of one chain found: segments[0..count), the first `skip` bytes left out. */
struct chain {
	struct iovec *segments;
	uint32_t count;
	uint32_t skip;  /* in: bytes to leave out at the front (the virtio-net header) */
	uint64_t bytes; /* in all descriptors, the skipped ones included */
	uint32_t own;   /* descriptors of the ring that it takes: those of an indirect table are none */
	uint32_t verdict; /* enum rk_drop; set by packed_look() */
	bool missing;     /* a part of it has no translation yet, and is not among the segments */
};

/* The verdict of such a chain, which is neither forwarded nor dropped: the ring waits before it. */
#define CHAIN_MISSING 0x200u

/* A receive chain taken for a frame: what goes into used ring and how much it holds. */
struct gathered {
	struct head head;
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
	struct head head;
	bool held;        /* the port has it */
	uint32_t verdict; /* enum rk_drop */
	uint32_t bytes;   /* of its frame */
};

/* A receive chain that the VF has: where the header goes, and how long the frame may be. */
struct posted {
	struct head head;
	uint32_t room;
	struct shm *header_at, *frame_at;
};

/* How VM1 receives. */
enum receives {
	RECEIVES_COPIES,
	RECEIVES_WATCHED, /* the same, and what VM1 posts is looked at: it may suit the VF some day */
	RECEIVES_DIRECT,  /* the VF's DMA writes to its buffers */
};

/* What was seen of the chains of a ring that is watched: each is looked at once, before it is taken. */
struct watch {
	uint16_t from;  /* the place where the ring stood then */
	bool stopped;   /* at a chain that does not suit: no other is looked at before the ring goes on */
	uint32_t ahead; /* slots from there on that were looked at */
	uint32_t run;   /* chains that suited, one after the other */
	uint32_t goal;  /* of run */
};

/* The first line of it is all that a turn needs that finds nothing: idle rings are many. */
struct rk_queue {
	struct shm *desc, *avail;
	struct posted *posted; /* of a receive ring that is or was direct: as in_flight; else NULL */
	uint32_t size, flags;
	uint32_t fault;
	uint16_t next;       /* the place of the first chain not yet taken */
	uint16_t used_next;  /* where the next used element goes */
	uint16_t used_shown; /* what VM1 was shown: behind used_next by what is not published */
	uint16_t flying;     /* chains in flight */
	uint16_t flight;     /* the oldest of them, free-running */
	bool empty;          /* nothing was available when last looked */
	bool waiting;        /* frames of the port wait for buffers, or the port for its other side */
	uint8_t receives;    /* enum receives */
	uint8_t asks;        /* to receive the other way: RK_EVENT_SUITED or RK_EVENT_UNSUITED; 0: it does not */
	bool plain;          /* plain chains go by the short way, in a burst */
	uint8_t scattered;   /* so many more bursts are taken to lie in several regions */
	struct shm *used;
	/* ---- 64 bytes ---- */
	const struct rk_map *map;
	struct dirty *dirty;                /* what marks written buffers; NULL: nobody asks */
	const struct rk_region *hint;       /* where the last buffer was */
	uint64_t last;                      /* its bus address, if it was looked for beyond that region */
	const struct rk_region *table_hint; /* where the last indirect table was */
	struct rk_direction_stats *stats;
	uint32_t mask, header_bytes;
	uint32_t frame_bytes_max;           /* of a frame without tags: mtu.h */
	uint32_t walked;    /* in this turn: see TURN_WALK_MAX */
	uint32_t flight_mask;
	struct in_flight *in_flight; /* a first-in first-out of flight_mask + 1 */
	int call_fd;
	int64_t call_offset;
	int kick_fd;
	uint64_t coalesce;  /* TSC cycles that a call may wait; the loop sets it */
	uint64_t call_due;  /* when one that waits is made; 0: none waits */
	uint16_t call_from; /* it is for what was used from there on */
	void *table;               /* private copy of an indirect table: size entries */
	struct gathered *gathered; /* size entries */
	struct pending *pending;   /* packed: size entries */
	uint32_t pending_count;
	bool pending_more; /* of one of them */
	uint32_t *commit;          /* packed: its commit words */
	uint8_t *bounce;           /* one frame of too many segments, made one */
	struct expansion *expansion; /* frames whose offload is done here */
	uint8_t header[HEADER_BYTES_MAX]; /* with offloads: what the walk of the last chain left out, read once */
	struct iovec *segments;    /* pool of segments_max */
	uint32_t chain_segments;   /* most that one chain can give */
	uint32_t segments_max;
	uint64_t parts[3];         /* bus addresses of desc, avail, used */
	struct missing *missing;   /* of a ring whose addresses are translated; else NULL */
	struct watch watch;
	struct flush flush;
};

static inline bool queue_packed(const struct rk_queue *queue)
{
	return queue->flags & RK_RING_PACKED;
}

/*
 * Walks the chain of head into chain->segments (at least queue->chain_segments of room).
 * permission RK_READ: all descriptors must be device-readable; RK_WRITE: device-writable. Returns
 * RK_SENT or the first fault in walking order. A chain for reading fails as RK_DROP_OVERSIZE at the descriptor
 * that makes it longer than header and RK_FRAME_MAX; of one for writing, descriptors after as
 * many bytes are walked but not translated. So a chain costs at most size descriptors and one long translation.
 */
enum rk_drop chain_walk(struct rk_queue *queue, struct head *head, uint32_t permission,
			struct chain *chain);

/* Shows VM1 what was returned since the last time, and calls it if it wants to know (2.7.7.2, 2.8.10), at
 * once or as queue->coalesce has it. Not on a quarantined ring. */
void queue_publish(struct rk_queue *queue);
/* Makes the call that waits, if there is one. */
void queue_call_now(struct rk_queue *queue);

/* Whether anything is available that was not taken yet: it is not judged. */
bool queue_has_news(const struct rk_queue *queue);
/* Asks VM1 to kick (2.7.10). True: something became available meanwhile, and no kick may come for it. */
bool queue_arm(struct rk_queue *queue);
/* No kicks any more; one may still come. */
void queue_disarm(struct rk_queue *queue);

/* A frame of more segments than ports take becomes one segment of private memory, of which there is one. */
void send_flatten(struct rk_queue *queue, struct rk_frame *frame);

/* Reads and judges the virtio-net headers of n frames and gives them to the port, what it lacks done in software; how
 * many it is done with, each with its verdict. */
uint32_t send_judged(struct rk_queue *queue, struct rk_port *port, struct rk_frame *frames,
		     uint32_t n);

#endif
