/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The ring-batch kernel's interface: what Python (pmd/kernel.py) and the ports see.
 *
 * Python decides, C moves. Objects are made and changed while no loop runs them; a loop runs on one
 * thread, without the GIL, until an event or its budget ends it. No function calls back into Python and
 * nothing allocates after start. Section numbers are of the virtio specification, 1.3.
 */
#ifndef RINGK_H
#define RINGK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define RK_API __attribute__((visibility("default")))

/* Changes with any structure or signature here; pmd/kernel.py refuses another. */
#define RK_ABI 20u

#define RK_BURST_MAX 256u
#define RK_WORKS_MAX 65535u
/* A frame's longest payload: a 16-bit IP length and room for the Ethernet header and tags. */
#define RK_FRAME_MAX 65562u
/* A frame given to a port has at most so many segments; one of more is made one first. */
#define RK_SEGMENTS_MAX 64u

/* Why a chain was returned without its frame having been forwarded. rk_drop_name() has the names. */
enum rk_drop {
	RK_SENT = 0,           /* not a drop: the verdict of a forwarded frame */
	RK_DROP_BAD_ADDRESS,   /* a buffer outside the memory table, or without the permission */
	RK_DROP_BAD_NEXT,      /* next is not a descriptor of the table */
	RK_DROP_CHAIN_LOOP,    /* more descriptors than the table has: 2.7.5.3.1 */
	RK_DROP_BAD_DIRECTION, /* device-writable where readable is due, or the reverse: 2.7.5.1, 2.7.4.2 */
	RK_DROP_BAD_INDIRECT,  /* not negotiated, nested, with NEXT, or of impossible length: 2.7.5.3.1 */
	RK_DROP_RUNT,          /* shorter than the virtio-net header and an Ethernet header */
	RK_DROP_OVERSIZE,      /* longer than RK_FRAME_MAX, or than the VF takes */
	RK_DROP_DISABLED,      /* the ring is started but not enabled */
	RK_DROP_SMALL_BUFFER,  /* VM1's receive buffers cannot hold the frame */
	RK_DROP_VF_DOWN,       /* the VF's peer or link is gone */
	RK_DROP_VF_ERROR,      /* the VF refused the frame */
	RK_DROP_BAD_OFFLOAD,   /* its virtio-net header asks for what was not negotiated or cannot be: 5.1.6 */
	RK_DROP_OVER_MTU,      /* longer than VM1's MTU allows, and not to be cut: 5.1.4.1 */
	RK_DROP_VF_FULL,       /* the VM1 at a patch's other end has no buffer for it */
	RK_DROP_NO_BUFFER,     /* VM1 had none for it, and other queue pairs' frames were behind it */
	RK_DROP_COUNT
};

/* Why a ring is no longer touched. rk_fault_name() has the names. */
enum rk_fault {
	RK_FAULT_NONE = 0,
	RK_FAULT_INDEX_JUMP,   /* avail.idx moved by more than the ring's size: 2.7.6 */
	RK_FAULT_BAD_HEAD,     /* an available entry names no descriptor */
	RK_FAULT_WINDOW,       /* the window's memory went away */
	RK_FAULT_LONG_CHAIN,   /* packed: a chain of more descriptors than VM1 has there: 2.8.17 */
	RK_FAULT_MISSING,      /* no quarantine: it waits for translations (rk_queue_misses()) */
	RK_FAULT_COUNT
};

/* ---- translation ------------------------------------------------------------------------------ */

#define RK_READ 1u
#define RK_WRITE 2u

/* One run of VM1's memory as this process sees it. */
struct rk_region {
	uint64_t bus;
	uint64_t length;
	uint64_t host;       /* address in this process */
	uint32_t permission; /* RK_READ | RK_WRITE */
	uint32_t reserved;
};

struct rk_map;

/* Copies count regions, sorted by bus, not overlapping, lengths > 0; NULL with errno EINVAL/ENOMEM if not so. */
RK_API struct rk_map *rk_map_new(const struct rk_region *regions, uint32_t count);
RK_API void rk_map_free(struct rk_map *map);
/* Host address of bus, or 0; *run becomes how many of length bytes are contiguous there. */
RK_API uint64_t rk_map_translate(const struct rk_map *map, uint64_t bus, uint64_t length,
				 uint32_t permission, uint64_t *run);

/* What a ring lacks a translation of (VIRTIO_F_ACCESS_PLATFORM; docs/device.md 5.8). */
struct rk_miss {
	uint64_t bus, length;
	uint32_t permission; /* RK_READ or RK_WRITE */
	uint32_t reserved;
};

#define RK_MISSES_MAX 32u

/* ---- rings ------------------------------------------------------------------------------------ */

#define RK_RING_INDIRECT (1u << 0)  /* VIRTIO_F_INDIRECT_DESC accepted */
#define RK_RING_EVENT_IDX (1u << 1) /* VIRTIO_F_EVENT_IDX accepted */
#define RK_RING_MERGEABLE (1u << 2) /* VIRTIO_NET_F_MRG_RXBUF accepted */
#define RK_RING_ENABLED (1u << 3)   /* else transmit buffers are returned unsent */
#define RK_RING_PACKED (1u << 4)    /* VIRTIO_F_RING_PACKED accepted: 2.8 */
#define RK_RING_IN_ORDER (1u << 5)  /* VIRTIO_F_IN_ORDER accepted: 2.7.9, 2.8.8 */
#define RK_RING_COMBINING (1u << 6) /* the window is mapped write-combining: see shm.h */
#define RK_RING_TRANSLATED (1u << 7) /* VIRTIO_F_ACCESS_PLATFORM accepted: what the map lacks may yet come */
/* What VM1's virtio-net header may ask for (a transmit ring: CSUM, HOST_*) or be told (a receive ring: GUEST_*). */
#define RK_RING_CSUM (1u << 8)
#define RK_RING_TSO4 (1u << 9)
#define RK_RING_TSO6 (1u << 10)
#define RK_RING_ECN (1u << 11)
#define RK_RING_USO (1u << 12)
#define RK_RING_UFO (1u << 13)
#define RK_RING_OFFLOADS \
	(RK_RING_CSUM | RK_RING_TSO4 | RK_RING_TSO6 | RK_RING_ECN | RK_RING_USO | RK_RING_UFO)

struct rk_ring_config {
	uint64_t desc, avail, used; /* bus addresses; packed: descriptor ring, driver and device event */
	uint32_t size;              /* 1..32768; split: a power of two */
	uint32_t flags;
	uint32_t header_bytes;      /* 10 or 12: 5.1.6.1 */
	int32_t call_fd;            /* -1: VM1 gave none */
	int64_t call_offset;        /* -1: call_fd is an eventfd; else write 32 bits at this file offset */
	int32_t kick_fd;            /* readable when VM1 kicked; -1: nothing tells */
	uint32_t mtu;               /* a receive ring: of frames that are not to be cut; 0: any */
	uint64_t commit;            /* packed: the ring's commit words in this process, else 0: docs/device.md 5.6 */
	uint64_t dirty;             /* a receive ring's map of marks in this process, 0: none: docs/device.md 5.7 */
	uint64_t dirty_bytes;
	uint32_t dirty_shift;       /* of the bytes that each has a mark for; less than 64 */
	uint32_t reserved;
};

struct rk_direction_stats {
	uint64_t packets, bytes;        /* forwarded frames, and their bytes without virtio-net header */
	uint64_t drops[16];             /* by enum rk_drop */
	uint64_t bursts;                /* turns that moved at least one chain */
	uint64_t cycles;                /* TSC cycles of those turns */
	uint64_t calls;                 /* interrupts sent to VM1 */
	uint64_t flushed;               /* chains whose lines were flushed from the caches: csrc/flush.h */
};

struct rk_queue;
struct rk_port;

/*
 * A ring, ready to run from VM1's used.idx (docs/device.md 5.3), or packed, from its commit words (5.6). The
 * map and the stats must outlive it. NULL with errno: EINVAL for impossible geometry, EFAULT where a
 * ring part is not in one run of the map with its permission, ERANGE where avail.idx is further
 * than the ring's size from used.idx, or the commit words are none of this ring.
 */
RK_API struct rk_queue *rk_queue_new(const struct rk_ring_config *config, const struct rk_map *map,
				     struct rk_direction_stats *stats);
RK_API void rk_queue_free(struct rk_queue *queue);
/* enum rk_fault; not 0 means quarantined. */
RK_API uint32_t rk_queue_fault(const struct rk_queue *queue);
/* Calls VM1 whatever its suppression says (after start: docs/device.md 5.3). */
RK_API void rk_queue_call(struct rk_queue *queue);
/*
 * Whether VM1's buffers, as far as it has posted any, suit the port's VF; then what it receives goes there by
 * the VF's DMA. To be asked while no loop runs the ring, which receives by copies; the port is then to be set
 * likewise. A buffer that later does not suit ends the ring's work with RK_EVENT_UNSUITED. Chains given to the VF
 * are taken, but not returned: once the VF has let go of them, a new queue begins with them.
 */
RK_API uint32_t rk_queue_set_direct(struct rk_queue *queue, const struct rk_port *port);
/*
 * It receives by copies from now on; the VF has let go of what it had of the ring's, and that is available as
 * before. What VM1 posts is looked at: once patience chains in a row suit the port's VF, the ring's work ends
 * with RK_EVENT_SUITED. 0: nothing is looked at.
 */
RK_API void rk_queue_set_copied(struct rk_queue *queue, uint32_t patience);
/* Chains taken from the ring and not returned: a port still reads their memory, or an older one's. */
RK_API uint32_t rk_queue_in_flight(const struct rk_queue *queue);
/* Returns those, counted as RK_DROP_VF_ERROR, unless it is for receiving. Only after the VF can no longer reach them. */
RK_API void rk_queue_abandon(struct rk_queue *queue);

/*
 * Takes what the ring waits for, RK_MISSES_MAX at most, to be asked for; how many. Its chain stays available, and
 * the ring is left alone, until it has another map.
 */
RK_API uint32_t rk_queue_misses(struct rk_queue *queue, struct rk_miss *misses);
/* What was asked for and VM1's IOMMU does not have: chains with it are dropped. Copied; -1 with errno ENOMEM. */
RK_API int rk_queue_refuse(struct rk_queue *queue, const struct rk_miss *refused, uint32_t count);
/*
 * Translates by another map from now on, and goes on where the ring waited; 0, or -1 with errno EFAULT where a
 * part of the ring is not in one run of it (then the queue is as before). Nothing of it may be in flight.
 */
RK_API int rk_queue_remap(struct rk_queue *queue, const struct rk_map *map);

#include "rk_port.h"

/* ---- the poll loop ---------------------------------------------------------------------------- */

#define RK_EVENT_STOP (1u << 0)       /* rk_loop_stop() */
#define RK_EVENT_BUDGET (1u << 1)     /* the time given is over */
#define RK_EVENT_GENERATION (1u << 2) /* a work's generation is not the expected one */
#define RK_EVENT_FAULT (1u << 3)      /* a ring was quarantined, or a window's memory went away */
#define RK_EVENT_UNSUITED (1u << 4)   /* VM1's receive buffers do not suit the VF any more */
#define RK_EVENT_MISSING (1u << 5)    /* a ring waits for translations: rk_queue_misses() */
#define RK_EVENT_SUITED (1u << 6)     /* VM1's receive buffers suit the VF now: rk_queue_set_copied() */

/* One queue pair of one channel. Owned by Python, which changes it only while the loop does not run. */
struct rk_work {
	const uint32_t *generation; /* the state area's; NULL: never changes */
	uint64_t *heartbeat;        /* the driver area's; NULL: none */
	const uint32_t *fault;      /* set by the guard; NULL: unguarded */
	struct rk_queue *tx, *rx;   /* either may be NULL */
	struct rk_port *port;
	uint32_t expected;          /* the generation this work was set up for */
	uint32_t events;            /* out: RK_EVENT_GENERATION and those after it; the work is passed over while not 0 */
	int32_t wake_fd;            /* readable when the generation changed; -1: nothing tells */
	uint16_t idle, next;        /* of the loop: rounds in which nothing moved, and its lists (roster.h) */
};

struct rk_loop_stats {
	uint64_t turns, busy_turns;   /* rounds over the works; those that moved something */
	uint64_t cycles, busy_cycles; /* TSC cycles inside rk_loop_run so far; of turns that moved something */
	uint64_t sleeps, slept_cycles; /* times it slept; TSC cycles of that */
};

struct rk_loop;

RK_API struct rk_loop *rk_loop_new(uint32_t burst, struct rk_loop_stats *stats);
RK_API void rk_loop_free(struct rk_loop *loop);
/* Borrows the array, of at most RK_WORKS_MAX, until the next call has returned. Patch ports are joined to their other end, if it is among the works. */
RK_API void rk_loop_set(struct rk_loop *loop, struct rk_work *works, uint32_t count);
/* Polls until an event; returns the events (never 0). */
RK_API uint32_t rk_loop_run(struct rk_loop *loop, uint64_t budget_ns);
/*
 * How the loop polls, from its next run on. It sleeps once nothing moved for idle_ns, if it may, until VM1
 * kicks, a port has frames, a work's wake_fd says so, or rk_loop_stop(); a work that cannot tell (a port
 * that is to be polled, a frame its port refused) makes it look every 50 us. VM1 is asked for kicks only
 * while the loop sleeps. Calls to VM1 wait for up to coalesce_ns, and are then made for all that came.
 */
struct rk_poll {
	uint32_t may_sleep; /* 0: it never does */
	uint32_t reserved;
	uint64_t idle_ns, coalesce_ns;
};

RK_API void rk_loop_poll(struct rk_loop *loop, const struct rk_poll *poll);
/* From any thread: the running, or else the next, rk_loop_run() returns at its next burst boundary. */
RK_API void rk_loop_stop(struct rk_loop *loop);
/* One turn of one work, for tests and stage benchmarks; returns the chains completed. A patch port is to be
 * joined: its work is one of a loop's. */
RK_API uint32_t rk_work_turn(struct rk_work *work, uint32_t burst);
/* Returns to VM1 what the VF is done with, takes nothing new; the chains for transmit still in flight. Not
 * while a loop runs it. */
RK_API uint32_t rk_work_drain(struct rk_work *work);
/* The VF's receive queue was stopped: what it has received goes to VM1, as far as that has buffers, of a work that
 * receives by copies. Then rk_port_set_direct() is due. */
RK_API void rk_work_take_rest(struct rk_work *work);

/* ---- guard: a window whose memory shrinks must not kill the process --------------------------------- */

/* Installs the SIGBUS handler (once). Windows are then named to it; a fault in one maps zero pages over
 * the whole window, sets *fault and lets the access go on. Other faults go to the handler before ours. */
RK_API int rk_guard_install(void);
RK_API int rk_guard_add(void *base, uint64_t length, uint32_t *fault);
RK_API void rk_guard_remove(void *base);

/* ---- probe: how a window is mapped, by how fast it can be read ----------------------------------------- */

/* Picoseconds of an 8-byte load that waits for the one before it; of a 64-byte line among others. Reads of
 * the first MiB only, for about budget_ns (at least a batch); base is aligned to 64 bytes. 0: less than a page. */
RK_API uint64_t rk_probe_load_ps(void *base, uint64_t bytes, uint64_t budget_ns);
RK_API uint64_t rk_probe_line_ps(void *base, uint64_t bytes, uint64_t budget_ns);

/* ---- facts -------------------------------------------------------------------------------------- */

RK_API uint32_t rk_abi(void);
RK_API const char *rk_drop_name(uint32_t drop);   /* NULL past the end */
RK_API const char *rk_fault_name(uint32_t fault); /* NULL past the end */
/* "scalar", "avx2" or "avx512": what loops use beyond every processor's instructions, since the last queue was made. */
RK_API const char *rk_isa(void);
RK_API const char *rk_isa_name(uint32_t isa);     /* NULL past what this processor has */
RK_API uint64_t rk_tsc_hz(void);                  /* measured once, about 20 ms */
/* sizeof of the structure of that name ("rk_region", ...), for the binding's handshake; 0 if unknown. */
RK_API uint64_t rk_sizeof(const char *structure);

#endif
