/* SPDX-License-Identifier: BSD-3-Clause */
/* What the modes share: the engine, the clock, and taking a frame off a receive ring. */
#ifndef VM1_ENGINE_H
#define VM1_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "clock.h"
#include "frame.h"
#include "latency.h"
#include "offload.h"
#include "ring.h"
#include "sequence.h"
#include "slicer.h"
#include "vm1.h"

#define BURST 64u
#define CANARY 0xa5u
#define GUARD_WORDS (VM1_GUARD / 8)

/* 5.1.6.1; num_buffers only with VERSION_1 or MRG_RXBUF */
struct net_header {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t hdr_len, gso_size, csum_start, csum_offset;
	uint16_t num_buffers;
};

_Static_assert(sizeof(struct net_header) == 12, "5.1.6.1");

struct pair {
	struct ring receive, transmit;
	struct sequence *sequence; /* verify: of the stream expected */
	uint64_t count;            /* verify: frames of either stream; 0: no end */
	uint64_t made;             /* verify: frames of our stream */
	uint64_t peer_has;         /* verify: of them the peer's last word */
	uint64_t peer_told;        /* verify: what we last told the peer */
	uint64_t *sums;            /* verify with offloads: of what each transmit slot holds */
};

struct vm1 {
	struct vm1_config config;
	struct vm1_stats *stats;
	struct pair *pairs;
	uint8_t *bounce;       /* a frame put together of several buffers */
	uint8_t *piece;        /* verify: one of a frame's pieces, aligned */
	uint64_t random;       /* state of the size generator */
	uint64_t first_ns, progress_ns;
	bool finishing;        /* verify: no further frame */
	struct slicer *slicer; /* replay */
	struct vm1 *second;    /* replay: runs with this one, or NULL */
	struct latency *latency;
	_Alignas(16) uint8_t header[16];  /* replay: the virtio-net header of each frame */
	_Alignas(16) uint8_t pattern[64]; /* replay: how each frame begins */
	uint32_t number_at; /* replay: where it is another one each time */
};

/* A received frame; it stays readable until receive_done(). */
struct received {
	const uint8_t *frame;
	uint32_t length;
	uint32_t slot;  /* where it lies; NO_SLOT: in the bounce buffer */
	bool usable;    /* false: the device broke the rules, and this is no frame */
	struct net_header header;
};

#define NO_SLOT UINT32_MAX

/* The next frame that ring_look() saw; false when there is none. */
bool receive_next(struct vm1 *vm1, struct ring *ring, struct received *received);
/* Posts its buffer again; ring_publish() is the caller's. */
void receive_done(struct vm1 *vm1, struct ring *ring, const struct received *received);
/* Fills every buffer's guards, and posts all of a receive ring. */
void receive_stock(struct vm1 *vm1, struct ring *ring);

/* One transmit slot that carries length bytes of frame, already written, with an empty virtio-net header. */
static inline void transmit_post(struct ring *ring, uint32_t slot, uint32_t length)
{
	/* The header is 10 or 12 bytes: constants compile to stores. */
	if (ring->header_bytes == 12)
		__builtin_memset(ring_header(ring, slot), 0, 12);
	else
		__builtin_memset(ring_header(ring, slot), 0, 10);
	ring_post(ring, slot, ring->header_bytes + length);
}

/* Takes back transmit buffers that the device has used; how many. */
uint32_t transmit_reclaim(struct vm1 *vm1, struct pair *pair);
/* A frame size as the configuration wants it. */
uint32_t draw_size(struct vm1 *vm1);

uint32_t replay_run(struct vm1 *vm1, uint64_t deadline_ns);
uint32_t verify_run(struct vm1 *vm1, uint64_t deadline_ns);
uint32_t tap_run(struct vm1 *vm1, uint64_t deadline_ns);
uint32_t latency_run(struct vm1 *vm1, uint64_t deadline_ns);
uint32_t idle_run(struct vm1 *vm1, uint64_t deadline_ns);
void replay_stock(struct vm1 *vm1);

#endif
