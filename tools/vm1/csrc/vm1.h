/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The embedded VM1's hot loop: a virtio-net driver, as Python (tools/vm1/engine.py) sees it.
 *
 * Python lays memory out, talks vhost-user and decides; one thread runs vm1_run() without the GIL. Nothing
 * here calls back, and nothing allocates after vm1_new(). Section numbers are of the virtio
 * specification, 1.3.
 */
#ifndef VM1_H
#define VM1_H

#include <stdint.h>

#define VM1_API __attribute__((visibility("default")))

/* Changes with any structure or signature here; engine.py refuses another. */
#define VM1_ABI 7u

#define VM1_PAIRS_MAX 64u
#define VM1_CHAIN_MAX 32u
/* A frame without FCS: our fields must fit, and a receive buffer must hold it with its header. */
#define VM1_FRAME_MIN 60u
#define VM1_FRAME_MAX 9216u
/*
 * A buffer's area: VM1_HEADROOM bytes whose last ones are the virtio-net header, the frame, and VM1_GUARD
 * bytes. What the device does not own of them holds a canary.
 */
#define VM1_HEADROOM 64u
#define VM1_GUARD 64u

enum vm1_mode { VM1_REPLAY, VM1_VERIFY, VM1_TAP, VM1_IDLE, VM1_LATENCY };

#define VM1_TRANSMIT 1u
#define VM1_RECEIVE 2u

/* One buffer's area, by its address here and its bus address. */
struct vm1_slot {
	uint64_t host;
	uint64_t bus;
};

#define VM1_RING_EVENT_IDX (1u << 0) /* VIRTIO_F_EVENT_IDX accepted */
#define VM1_RING_IN_ORDER (1u << 1)  /* VIRTIO_F_IN_ORDER accepted */
#define VM1_RING_INDIRECT (1u << 2)  /* every chain in an indirect table: 2.7.5.3, 2.8.7 */
#define VM1_RING_RECEIVE (1u << 3)   /* buffers are device-writable */
#define VM1_RING_PACKED (1u << 4)    /* VIRTIO_F_RING_PACKED accepted: 2.8 */

/* A ring: addresses of this process, but for indirect_bus. */
struct vm1_ring_config {
	uint64_t desc, avail, used;           /* packed: the descriptor ring, driver and device event */
	uint64_t indirect_host, indirect_bus; /* slot_count tables of chain descriptors; 0: none */
	const struct vm1_slot *slots;         /* copied */
	uint32_t slot_count;                  /* with its descriptors not more than size */
	uint32_t size;                        /* of a split ring a power of two */
	uint32_t chain;                       /* descriptors of one buffer */
	uint32_t flags;
	uint32_t frame_capacity;              /* bytes of a buffer after its header */
	int32_t kick_fd, call_fd;
	uint32_t reserved;
};

/* What may be left to the device of a transmitted frame; what the device may leave to us of a received one. */
#define VM1_OFFLOAD_CSUM (1u << 0)
#define VM1_OFFLOAD_TSO4 (1u << 1)
#define VM1_OFFLOAD_TSO6 (1u << 2)
#define VM1_OFFLOAD_GUEST_CSUM (1u << 3)
#define VM1_OFFLOAD_GUEST_TSO4 (1u << 4)
#define VM1_OFFLOAD_GUEST_TSO6 (1u << 5)

/* What is left to the device of each replayed frame. */
#define VM1_LEAVE_NOTHING 0u
#define VM1_LEAVE_CSUM 1u
#define VM1_LEAVE_TSO 2u /* its checksum, and its cutting into segments of VM1_SEGMENT bytes */
#define VM1_LEAVE_USO 3u /* the same, into datagrams of as many */
#define VM1_LEAVE_UFO 4u /* the same, into IP fragments of VM1_FRAGMENT bytes */
#define VM1_SEGMENT 1448u
#define VM1_FRAGMENT 1480u

struct vm1_config {
	uint32_t mode;         /* enum vm1_mode */
	uint32_t pairs;
	uint32_t header_bytes; /* 10 or 12: 5.1.6.1 */
	uint32_t mergeable;    /* VIRTIO_NET_F_MRG_RXBUF accepted */
	uint32_t directions;   /* VM1_TRANSMIT | VM1_RECEIVE */
	uint32_t touch;        /* replay: 0, 1 or 2 */
	uint32_t size_min, size_max; /* frame sizes, drawn evenly */
	uint32_t imix;         /* sizes 60, 590, 1514 as 7:4:1 instead */
	uint32_t window;       /* verify: frames in flight of one stream; 0: what the rings hold */
	uint32_t stream;       /* verify: our streams are stream .. stream + pairs - 1 */
	uint32_t peer_stream;  /* verify: streams to expect; our own in a loop */
	uint64_t count;        /* verify: frames of each direction; 0: no end */
	uint64_t timeout_ns;   /* verify: end when nothing came for so long */
	uint64_t rate;         /* verify: frames a second at most; 0: no limit */
	uint8_t destination[8], source[8]; /* Ethernet addresses, six bytes each */
	int32_t tap_fd;        /* tap: the open device, borrowed */
	uint32_t poll;         /* tap: never sleep */
	uint32_t offloads;     /* verify: VM1_OFFLOAD_*, as negotiated */
	uint32_t leave;        /* replay: VM1_LEAVE_*, as negotiated; frames of one size */
	uint32_t sleep;        /* verify: a ring is looked at again only when it is called for */
	uint32_t reserved;
	uint64_t slice_cycles; /* replay: TSC cycles of a slice; 0: none are noted */
};

/* Written by the running thread only; may be read at any time. */
struct vm1_stats {
	uint64_t sent, sent_bytes;         /* frames the device has used (replay, tap), or were made (verify) */
	uint64_t received, received_bytes; /* verify: without foreign and corrupt ones */
	uint64_t distinct;                 /* verify: different sequence numbers received */
	uint64_t highest;                  /* verify: sum over the streams of the highest number + 1 */
	uint64_t duplicated, reordered, corrupt, foreign;
	uint64_t acknowledged;             /* verify against a peer: how many of ours it says it has */
	uint64_t kicks, calls;             /* eventfd writes; eventfd wakes seen */
	uint64_t tap_dropped;              /* frames the TAP device refused */
	/* 5.1.6.4.1 wants 1 without MRG_RXBUF; DPDK 22.11 leaves it unwritten, so this is only told. */
	uint64_t unset_num_buffers;
	uint64_t offload_sent;     /* frames whose checksum, or cutting, was left to the device */
	uint64_t offload_received; /* frames whose checksum, or cutting, the device left to us */
	/* What the device did wrong. */
	uint64_t bad_id;           /* a used id that is no chain of ours */
	uint64_t duplicate_id;     /* a used id that is not in flight */
	uint64_t out_of_order;     /* IN_ORDER broken: 2.7.9, 2.8.9 */
	uint64_t bad_length;       /* a used length that cannot be: 2.7.8.2, 2.8.5, 5.1.6.4 */
	uint64_t index_jump;       /* more was used than is in flight; the ring is left alone from then on */
	uint64_t bad_header;       /* virtio-net header fields that were not negotiated: 5.1.6.4.1 */
	uint64_t broken_merge;     /* num_buffers and the used buffers disagree: 5.1.6.4 */
	uint64_t canary;           /* wrote outside a receive buffer, or beyond what it said */
	uint64_t readable_written; /* wrote a device-readable buffer: 2.7.5.1 */
	uint64_t desc_written;     /* wrote a descriptor: 2.7.5.1 */
	uint64_t lost_call;        /* verify that sleeps: rings in use for which no call came: 2.7.7.2 */
};

/* replay: what a short time of one vm1_run() moved. */
struct vm1_slice {
	uint64_t cycles;
	uint32_t sent, received;
	uint64_t still_cycles; /* the longest time in which nothing moved, or this thread did not run */
};

#define VM1_SLICES_MAX 256u

/* Thousandths of TSC cycles: a cache line's way to the other CPU; eight additions on either CPU. */
struct vm1_probe_result {
	uint64_t one_way_milli, own_alu_milli, peer_alu_milli;
};

#define VM1_LATENCY_BUCKETS 2304u

/* latency: what came of the frames since vm1_latency_begin(). */
struct vm1_latency {
	uint64_t sent, received;
	uint64_t most_cycles; /* the longest time a frame was under way */
	/* By cycles: one a bucket below 128, then 64 buckets to each doubling; the last is for all above. */
	uint64_t counts[VM1_LATENCY_BUCKETS];
};

#define VM1_BUDGET 0u      /* the time given is over, or a signal came */
#define VM1_DONE 1u        /* verify, and latency after vm1_finish(): all came back */
#define VM1_TIMED_OUT 2u   /* verify: nothing came for timeout_ns */
#define VM1_TAP_GONE 3u    /* tap: the TAP device was deleted */

struct vm1;

/* rings: 2 * pairs of them, index = vring index of vhost-user (5.1.2). NULL with errno EINVAL or ENOMEM. */
VM1_API struct vm1 *vm1_new(const struct vm1_config *config, const struct vm1_ring_config *rings,
			    struct vm1_stats *stats);
VM1_API void vm1_free(struct vm1 *vm1);
/* Runs the mode for budget_ns. */
VM1_API uint32_t vm1_run(struct vm1 *vm1, uint64_t budget_ns);
/* verify: the time until the timeout starts anew (the back-end was away). */
VM1_API void vm1_touch_clock(struct vm1 *vm1);
/* Kicks every ring (after a back-end came, 2.7.10: spurious notifications are legal). */
VM1_API void vm1_kick(struct vm1 *vm1);
/*
 * What SET_VRING_BASE says of the ring for a device that goes on behind what is used now, as far as that can be
 * believed: a split ring's used index; a packed one's position and wrap counter, twice. Takes nothing.
 */
VM1_API uint32_t vm1_base(struct vm1 *vm1, uint32_t ring);
/* verify, latency: makes no further frame; vm1_run() is done when those made came back. */
VM1_API void vm1_finish(struct vm1 *vm1);
/* Waits, for at most budget_ns, until the device has used every transmitted chain; what is left. */
VM1_API uint32_t vm1_drain(struct vm1 *vm1, uint64_t budget_ns);

/* replay: the slices of the last vm1_run(), at most capacity of them; how many. */
VM1_API uint32_t vm1_slices(const struct vm1 *vm1, struct vm1_slice *slices, uint32_t capacity);

/*
 * replay: when vm1 runs, second runs with it, turn by turn: one transmits to a back-end, the other receives
 * from it elsewhere. vm1's slices are of both. second must outlive vm1's last run.
 */
VM1_API void vm1_join(struct vm1 *vm1, struct vm1 *second);

/* latency: from now on a frame every so many TSC cycles; frames of before are no longer counted. */
VM1_API void vm1_latency_begin(struct vm1 *vm1, double cycles);
VM1_API void vm1_latency_found(const struct vm1 *vm1, struct vm1_latency *found);

struct vm1_probe;

/* A helper thread of real-time priority on peer_cpu; NULL with errno: EPERM, EINVAL for the CPU, ENOMEM. */
VM1_API struct vm1_probe *vm1_probe_new(uint32_t peer_cpu);
VM1_API void vm1_probe_free(struct vm1_probe *probe);
/* Takes both CPUs for under a millisecond; EBUSY where the helper did not get its own in time, else 0. */
VM1_API int vm1_probe_run(struct vm1_probe *probe, struct vm1_probe_result *result);

/* TSC cycles a second, measured for 20 ms. */
VM1_API uint64_t vm1_tsc_hz(void);

VM1_API uint32_t vm1_abi(void);
/* sizeof of the named structure above, for the binding's handshake; 0 for another. */
VM1_API uint64_t vm1_sizeof(const char *structure);

#endif
