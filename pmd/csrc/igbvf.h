/* SPDX-License-Identifier: BSD-3-Clause */
/* What the two directions of the igbvf port share: its rings. */
#ifndef IGBVF_H
#define IGBVF_H

#include "headers.h"
#include "mmio.h"
#include "port.h"

#include <stdbool.h>

#define IGBVF_TAG_BYTES 4u /* of a VLAN */
#define IGBVF_FRAME_BYTES_MIN 60u /* Ethernet's minimum without FCS; shorter ones are padded with zeros */

#define ETHERNET_HEADER_BYTES 14u

/* Receive: bits of the status word after write-back. */
#define RX_DONE (1u << 0)   /* DD */
#define RX_END (1u << 1)    /* EOP */
#define RX_TAG (1u << 3)    /* VP: the VLAN tag was taken out */
#define RX_ERROR (1u << 31) /* RXE: what passed the filters all the same */

/* Transmit: bits of the command word, and of the status word after write-back. */
#define TX_CONTEXT (2u << 20)  /* DTYP: context */
#define TX_DATA (3u << 20)     /* DTYP: data */
#define TX_END (1u << 24)      /* EOP */
#define TX_FCS (1u << 25)      /* IFCS: the VF appends the FCS */
#define TX_REPORT (1u << 27)   /* RS: write DD back */
#define TX_ADVANCED (1u << 29) /* DEXT */
#define TX_CUT (1u << 31)      /* TSE: cut it into segments */
#define TX_DONE (1u << 0)      /* DD */
#define TX_CONTEXT_SHIFT 4     /* IDX in the status word: the context to go by */
#define TX_IP_CHECKSUM (1u << 8)        /* IXSM */
#define TX_TRANSPORT_CHECKSUM (1u << 9) /* TXSM */
#define TX_PAYLOAD_SHIFT 14    /* PAYLEN in the status word: bytes of the whole frame; without headers if it is cut */

#define SPAN_HELD 0x8000u /* in tx_span: the frame is in VM1's memory */

/* 16 bytes, as written for the VF; the VF writes its report over the second half. */
struct igbvf_descriptor {
	uint64_t address;
	uint32_t word2; /* transmit: command and length. receive: 0, then status */
	uint32_t word3; /* transmit: PAYLEN, then status. receive: 0, then length and VLAN tag */
};

_Static_assert(sizeof(struct igbvf_descriptor) == 16, "7.1, 7.2.2");

struct igbvf_ring {
	struct igbvf_descriptor *descriptors;
	uint8_t *buffers;
	uint64_t buffers_iova;
	uint64_t tail; /* the register's address */
	uint32_t count, mask;
	uint32_t first; /* oldest not given back: receive, not taken off; transmit, not known to be sent */
	uint32_t next;  /* transmit, and direct: the next one to fill. Both run on; masked they are indices */
};

/* What a context descriptor says, without its index. */
struct igbvf_context {
	uint32_t lengths; /* of the headers */
	uint32_t kinds;   /* of the headers, and that it is a context */
	uint32_t cut;     /* how a frame is cut, or 0 */
};

#define IGBVF_CONTEXTS 2u /* that the VF remembers: 0 of checksums, 1 of frames to be cut */

struct igbvf_port {
	struct rk_port port;
	struct igbvf_ring rx, tx;
	uint32_t buffer_bytes, frame_bytes_max, direct_bytes;
	const uint32_t *link_up;
	const struct rk_vf_window *windows;
	struct rk_igbvf_report *report;
	uint64_t interrupts_on, interrupts_off; /* the registers' addresses */
	uint32_t held_done;  /* held frames that were sent, not yet told */
	uint16_t *tx_span;   /* by the first descriptor of a frame: how many it has */
	struct igbvf_context contexts[IGBVF_CONTEXTS]; /* that the VF has; zeroed: none */
	struct iovec *shown; /* segments of the frames shown */
	uint32_t shown_span[RK_BURST_MAX]; /* descriptors of each */
	uint8_t tags[RK_BURST_MAX][IGBVF_TAG_BYTES];
	uint64_t rx_tail; /* the register's address, which rx.tail is not while the queue is stopped */
	uint32_t nowhere; /* what it is then */
	bool in_long; /* direct: the rest of a frame longer than a buffer comes */
};

static inline uint8_t *buffer_of(const struct igbvf_port *vf, const struct igbvf_ring *ring,
				 uint32_t index)
{
	return ring->buffers + (size_t)index * vf->buffer_bytes;
}

static inline uint64_t buffer_iova(const struct igbvf_port *vf, const struct igbvf_ring *ring,
				   uint32_t index)
{
	return ring->buffers_iova + (uint64_t)index * vf->buffer_bytes;
}

/* Tells how far it got with what the VF received. */
static inline void igbvf_received(const struct igbvf_port *vf)
{
	__atomic_store_n(&vf->report->received, vf->rx.first, __ATOMIC_RELAXED);
}

static inline void igbvf_trouble(const struct igbvf_port *vf, enum rk_igbvf_trouble trouble)
{
	__atomic_store_n(&vf->report->trouble, trouble, __ATOMIC_RELAXED);
}

/* Fills one data descriptor. last: the VF is to report it. */
static inline void igbvf_tx_fill(struct igbvf_ring *tx, uint32_t at, uint64_t iova, uint32_t command,
				 uint32_t status, bool last)
{
	struct igbvf_descriptor *to = &tx->descriptors[at & tx->mask];
	uint32_t end = last ? TX_END | TX_REPORT : 0;

	dma_write64(&to->address, iova);
	dma_write32(&to->word2, TX_ADVANCED | TX_DATA | TX_FCS | end | command);
	dma_write32(&to->word3, status);
}

/* Frames that ask for something: port_igbvf_offload.c. */

/* What the VF does, if it has rings and buffers for the longest frame there is; RK_RING_OFFLOADS. */
uint32_t igbvf_offloads(const struct igbvf_port *vf);
/* Gives one to the VF, or a verdict; false: there is no room for it now. */
bool igbvf_tx_asking(struct igbvf_port *vf, struct rk_frame *frame);

/* Operations of the port: ringk.h. */
bool igbvf_takes(const struct rk_port *port, const struct rk_frame *frame);
uint32_t igbvf_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n);
uint32_t igbvf_reclaim(struct rk_port *port);
uint32_t igbvf_arm(struct rk_port *port);
void igbvf_disarm(struct rk_port *port);
extern const struct rk_direct_ops igbvf_direct_ops;

/* Gives count descriptors from first on to the VF again, with buffers of their own. */
void igbvf_give(struct igbvf_port *vf, uint32_t count);

#endif
