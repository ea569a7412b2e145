/* SPDX-License-Identifier: BSD-3-Clause */
/* The ports' part of the kernel's interface: included by ringk.h, which says what holds for all of it. */
#ifndef RK_PORT_H
#define RK_PORT_H

#include "ringk.h"

/* ---- ports: one queue pair's end at the VF ---------------------------------------------------------- */

/* What a virtio-net header says of its frame beside num_buffers (5.1.6): all zero is a plain frame. */
struct rk_offload {
	uint8_t flags;    /* RK_OFFLOAD_* */
	uint8_t gso_type; /* RK_GSO_* */
	uint16_t header_bytes, segment_bytes; /* hdr_len (a hint, not to be trusted), gso_size */
	uint16_t checksum_start, checksum_offset;
};

#define RK_OFFLOAD_NEEDS_CSUM 1u
#define RK_OFFLOAD_DATA_VALID 2u
#define RK_GSO_NONE 0u
#define RK_GSO_TCPV4 1u
#define RK_GSO_UDP 3u /* IP fragments of one datagram */
#define RK_GSO_TCPV6 4u
#define RK_GSO_UDP_L4 5u /* datagrams */
#define RK_GSO_ECN 0x80u /* or'ed to a TCP type */

/* A frame as the other side must read it: no virtio-net header, segments in order, none empty. */
struct rk_frame {
	struct iovec *segments;
	uint32_t segment_count;
	uint32_t bytes;   /* sum of the segments */
	uint32_t verdict; /* enum rk_drop; set by tx() for a frame it consumed without sending. Or RK_HELD */
	/* To tx(): judged, and such as the port takes. From rx(): all zero where flags and gso_type are. */
	struct rk_offload offload;
	uint8_t header_read; /* the kernel's own: the virtio-net header was read from VM1's memory */
	uint8_t done_here;   /* the same: what it asks for is done before tx() is given it */
};

/* tx() consumed the frame, but the VF still reads it where it is; reclaim() tells when that is over. */
#define RK_HELD 0x100u

struct rk_direct_ops;

struct rk_port_ops {
	const char *kind;
	/* VM1 -> VF. Consumes the first k of n frames, in order, and returns k; what it does not consume
	 * stays in VM1's ring and comes again. A segment lies in VM1's memory: it may change at any time,
	 * and is not to be touched after return, unless the frame's verdict is RK_HELD. */
	uint32_t (*tx)(struct rk_port *port, struct rk_frame *frames, uint32_t n);
	/* VF -> VM1. Shows up to n frames, oldest first, in the port's own memory; they are shown again
	 * until rx_done() takes the first k of them off. Both NULL: it has no frames; tx() may put some into rings. */
	uint32_t (*rx)(struct rk_port *port, struct rk_frame *frames, uint32_t n);
	void (*rx_done)(struct rk_port *port, uint32_t k);
	/* How many more of the oldest held frames are done. NULL: the port holds none. */
	uint32_t (*reclaim)(struct rk_port *port);
	void (*close)(struct rk_port *port);
	/* VF -> VM1 without a copy, instead of rx() and rx_done() while the port is in that mode. NULL: it has none. */
	const struct rk_direct_ops *direct;
	/* Before a sleep, of a port with a wake_fd: from now on it tells of frames; RK_ARMED ... NULL: it always does. */
	uint32_t (*arm)(struct rk_port *port);
	/* After it: it need not any more. NULL: it always does. */
	void (*disarm)(struct rk_port *port);
	/* Whether tx() will do what a judged frame asks for, which is of the port's offloads; VM1 may change the frame
	 * between the two: then it is dropped as RK_DROP_BAD_OFFLOAD. NULL: it takes all such frames. */
	bool (*takes)(const struct rk_port *port, const struct rk_frame *frame);
};

#define RK_ARMED 0u
#define RK_NEWS 1u  /* there is a frame already, and it may tell nothing of that */
#define RK_ERRAND 2u /* the port has to do something soon of which nothing tells */

/* Of filled(). */
#define RK_UNSUITED UINT32_MAX

/* A buffer of VM1's for the VF: its address is what suits() told. */
struct rk_posting {
	uint64_t iova;
	uint32_t bytes;
};

/* What came back in it. */
struct rk_filled {
	uint32_t bytes;       /* of the frame; 0: none. RK_UNSUITED: there is one, but VM1 cannot have it where it is */
	uint32_t more;        /* not 0: the frame goes on in the next one */
	uint32_t tag;         /* not 0: 802.1Q's four bytes, that the VF took out; the buffer has room for them */
	const uint8_t *front; /* where a frame goes on: the first of these bytes, that are to lie where the first buffer
			       * of a frame has VM1's header, as many as that has. Else NULL */
};

/* Memory is VM1's, by its address in this process. */
struct rk_direct_ops {
	/* The VF's receive queue was stopped: what rx_done() gives back goes nowhere until mode(). */
	void (*halt)(struct rk_port *port);
	/* Begins or ends the mode. The VF's receive queue is enabled, empty, and knows nothing of before. */
	void (*mode)(struct rk_port *port, bool direct);
	/* The VF's address of memory where any frame that it receives may go; 0 of other memory. */
	uint64_t (*suits)(const struct rk_port *port, const struct iovec *memory);
	uint32_t (*room)(const struct rk_port *port);
	/* Gives n buffers, at most room(), to the VF. */
	void (*post)(struct rk_port *port, const struct rk_posting *postings, uint32_t n);
	/* How many of the oldest posted are done, at most n, and what is in each: whole frames only, of up to
	 * RK_SEGMENTS_MAX. RK_UNSUITED: none is, nor will be: the VF does not go by their order. */
	uint32_t (*filled)(struct rk_port *port, struct rk_filled *filled, uint32_t n);
};

/* First member of every port. */
struct rk_port {
	const struct rk_port_ops *ops;
	uint64_t rx_missed; /* frames the VF's side lost before we saw them, as far as it tells */
	uint64_t tx_held;   /* frames the VF read where they were, not copied by us but for headers that it mends */
	/* RK_RING_OFFLOADS that tx() takes in a frame's offload, as far as takes() says so; the kernel does the rest itself.
	 * 0: nor does rx() show any. */
	uint32_t offloads;
	uint32_t reads; /* not 0: tx() reads the frames' bytes by this core, so they are fetched ahead */
	int32_t wake_fd; /* readable when rx() may have frames; RK_WAKE_* */
	uint32_t copy_below; /* a port that holds frames copies those of fewer bytes; UINT32_MAX: all */
	uint64_t rx_direct; /* frames the VF wrote to VM1's memory, not copied by us */
	uint32_t flush;     /* the kernel's own, for tx(): what of the frames that it copies is flushed (flush.h) */
};

/*
 * Holding takes fewer cycles than copying at every size (docs/performance.md, "Copy or hold"): only what is shorter
 * than any Ethernet frame, and so padded, is copied.
 */
#define RK_COPY_BELOW 64u

#define RK_WAKE_POLL 0    /* nothing tells: rx() is to be asked */
#define RK_WAKE_NONE (-1) /* rx() has frames only after tx() */

/* What the ports of VFs driven from here are given: memory stays its owner's, mapped and reachable by the
 * VF's DMA, until the port is closed. "iova" is an address as the VF uses it, the others are addresses in
 * this process. */
#define RK_VF_WINDOWS 16u

/* VM1's memory as this process and the VF's DMA see it. */
struct rk_vf_window {
	uint64_t address, length, iova; /* length 0: none, nor after it */
};

/* How a port's sending goes, told to whoever looks after its device, at any time. All three run on. */
struct rk_sending {
	uint32_t looks;       /* how often the port looked for what was sent */
	uint32_t given, done; /* what was given to the device, and what of it the device reported sent: frames or descriptors */
};

/* What such a VF did that it must not: it has to be reset. */
enum rk_igbvf_trouble {
	RK_IGBVF_WELL = 0,
	RK_IGBVF_OVERRUN, /* it wrote more than direct_bytes */
	RK_IGBVF_FOREIGN, /* it reported a receive descriptor that it was not given */
};

/* What a port tells whoever looks after the VF, at any time. */
struct rk_igbvf_report {
	uint32_t trouble;  /* enum rk_igbvf_trouble, the last one */
	uint32_t received; /* receive descriptors that were taken off, reported; runs on: of the ring's size, the oldest */
	struct rk_sending sending;
};

/* One queue pair of an Intel 82576 or I350 VF, set up and enabled with empty rings: head and tail 0. */
struct rk_igbvf_config {
	uint64_t rx_tail, tx_tail;       /* the 32-bit tail registers, mapped */
	uint64_t rx_ring, tx_ring;       /* 16 bytes a descriptor */
	uint64_t rx_buffers, tx_buffers; /* buffer_bytes for each descriptor of the ring */
	uint64_t rx_buffers_iova, tx_buffers_iova;
	uint32_t rx_count, tx_count;     /* descriptors: powers of two, 8..4096 */
	uint32_t buffer_bytes;
	uint32_t frame_bytes_max;        /* what the VF sends, without FCS */
	uint64_t link_up;                /* uint32_t, 0 while the link is down; may change at any time */
	uint64_t windows;                /* RK_VF_WINDOWS of them; may change while no loop runs */
	uint64_t report;                 /* struct rk_igbvf_report, zeroed */
	uint64_t interrupts_on, interrupts_off; /* the 32-bit registers VTEIMS and VTEIMC, mapped */
	uint32_t direct_bytes;           /* the most it writes to one of VM1's buffers; 0: it is not to write there */
	int32_t wake_fd;                 /* readable after an interrupt of the receive queue, vector 0; -1: it has none */
};

/* One virtqueue of a virtio network device, enabled and empty; its memory is zeroed. */
struct rk_virtio_queue {
	uint64_t descriptor_area, driver_area, device_area; /* 2.6 */
	uint64_t buffers, buffers_iova;  /* buffer_bytes for each descriptor */
	uint64_t notify;                 /* where its number is written to notify it, mapped */
	uint32_t size;                   /* a power of two, 64..32768 */
	uint32_t number;
};

/* Why a device is no longer used, though it may answer: it has to be reset. */
enum rk_virtio_trouble {
	RK_VIRTIO_WELL = 0,
	RK_VIRTIO_BAD_INDEX,  /* more buffers used than it was given: 2.7.8 */
	RK_VIRTIO_BAD_ID,     /* a buffer used that it does not have: never given, or used twice */
	RK_VIRTIO_BAD_LENGTH, /* more bytes written than the buffer has, or not even a header: 5.1.6.4 */
	RK_VIRTIO_BAD_COUNT,  /* num_buffers that cannot be: 5.1.6.4 */
};

/* What a port tells whoever looks after the device, at any time. */
struct rk_virtio_report {
	uint32_t trouble; /* enum rk_virtio_trouble: the port stays away from the device */
	struct rk_sending sending;
};

/* One queue pair of a virtio network device of VERSION_1 (5.1). */
struct rk_virtio_config {
	struct rk_virtio_queue rx, tx;
	uint32_t features;        /* RK_RING_PACKED, IN_ORDER, MERGEABLE; CSUM ... UFO: what the device does */
	uint32_t buffer_bytes;
	uint32_t frame_bytes_max; /* what the device sends, but for frames that it segments */
	int32_t wake_fd;          /* readable after an interrupt of the receive queue; -1: it has none */
	uint64_t link_up;         /* uint32_t, 0 while the link is down; may change at any time */
	uint64_t report;          /* struct rk_virtio_report */
	uint64_t windows;         /* RK_VF_WINDOWS of them; may change while no loop runs */
};

/*
 * The queues of a network interface that one queue pair has: AF_XDP sockets, bound, their rings empty and
 * mapped. All of it stays its owner's until the port is closed. Addresses are of this process.
 */
struct rk_xdp_ring {
	uint64_t producer, consumer, flags, entries;
};

struct rk_xdp_queue {
	struct rk_xdp_ring fill, completion, rx, tx;
	uint64_t memory;             /* rx_count chunks, then tx_count: less than 4 GiB */
	uint32_t rx_count, tx_count; /* of the rings' entries too: powers of two; tx_count 0: it sends nothing */
	int32_t fd;                  /* to wake the kernel by */
	uint32_t reserved;
};

/* What the port and the VF's owner tell each other, at any time. */
struct rk_xdp_state {
	uint32_t frame_bytes_max; /* what the interface sends, with a tag and without FCS; 0: it is down or gone */
	uint32_t broken;          /* set by the port: the rings make no sense, and are to be made anew */
};

struct rk_xdp_config {
	const struct rk_xdp_queue *queues; /* it sends on the first */
	uint32_t count;
	uint32_t chunk_bytes;              /* a power of two */
	uint32_t multi_buffer;             /* not 0: a frame to send may take several chunks */
	uint32_t reserved;
	uint64_t state;                    /* struct rk_xdp_state */
};

struct rk_port_config {
	const char *kind;   /* "null", "down", "copy", "loop", "patch", "gen", "tap", "packet", "dgram", "pcap", "igbvf",
			     * "virtio-net", "xdp" */
	int32_t fd;         /* tap, packet, dgram: the open device or socket, which the port now owns */
	uint32_t frame_bytes; /* gen: size of the synthetic frames without FCS */
	const char *input;  /* pcap: file to replay once, or NULL; patch: its name, which both ends have */
	const char *output; /* pcap: file to write, or NULL; dgram: the peer's path, or NULL where connected;
			     * patch: the end's name, which the other end has not */
	uint32_t offloads;  /* tap, packet: the RK_RING_OFFLOADS that the kernel takes from us */
	const struct rk_igbvf_config *igbvf; /* igbvf: its queue pair; else NULL */
	const struct rk_virtio_config *virtio; /* virtio-net: its queue pair; else NULL */
	const struct rk_xdp_config *xdp;     /* xdp: its queues; else NULL */
};

/* NULL, with a sentence in error (cause only, no newline), if the port cannot be opened. */
RK_API struct rk_port *rk_port_open(const struct rk_port_config *config, char *error, size_t error_bytes);
RK_API void rk_port_close(struct rk_port *port);
RK_API uint64_t rk_port_rx_missed(const struct rk_port *port);
RK_API uint64_t rk_port_tx_held(const struct rk_port *port);
RK_API uint64_t rk_port_rx_direct(const struct rk_port *port);
/* At first RK_COPY_BELOW; while no loop runs the port. */
RK_API void rk_port_set_copy_below(struct rk_port *port, uint32_t bytes);
/* Begins or ends receiving into VM1's memory: rk_direct_ops.mode(); nothing if it has no such mode. */
RK_API void rk_port_set_direct(struct rk_port *port, uint32_t direct);
/* The VF's receive queue was stopped, and is to forget what it received: frames that rx() has count as missed. */
RK_API void rk_port_drop_rest(struct rk_port *port);
/*
 * A port that count queue pairs (1 to 128) share, run by one loop. What one of them sends teaches it the flow; what
 * the port receives goes to the pair that its flow was last sent from, else to one by a hash of the flow
 * (5.1.6.5.6): of those that have a ring in receivers, which may be NULL. A flow's frames stay in order but
 * where it moves. NULL with errno: EINVAL, ENOMEM. Port and rings must outlive it.
 */
struct rk_steering;
RK_API struct rk_steering *rk_steering_new(struct rk_port *port, struct rk_queue *const *receivers,
					   uint32_t count);
/* The port of a queue pair: to be run, not to be closed. */
RK_API struct rk_port *rk_steering_port(struct rk_steering *steering, uint32_t pair);
/* The port then goes on behind the last frame that any pair took. While no loop runs them. */
RK_API void rk_steering_free(struct rk_steering *steering);

/* The port's operations, for tests. */
RK_API uint32_t rk_port_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n);
RK_API uint32_t rk_port_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n);
RK_API void rk_port_rx_done(struct rk_port *port, uint32_t k);

#endif
