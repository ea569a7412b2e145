/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Frames whose checksum, and whose cutting into segments, are left to the device (5.1.6.2), and what comes of
 * them. One is TCP over IPv4 or IPv6 whose payload is a row of pieces of one length, each a frame of frame.h
 * with a number of its own. So it does not matter to the account whether they come back together or one by one.
 */
#ifndef VM1_OFFLOAD_H
#define VM1_OFFLOAD_H

#include <stdbool.h>
#include <stdint.h>

#define NET_F_NEEDS_CSUM 1u /* 5.1.6 */
#define NET_F_DATA_VALID 2u
#define NET_GSO_NONE 0u
#define NET_GSO_TCPV4 1u
#define NET_GSO_UDP 3u
#define NET_GSO_TCPV6 4u
#define NET_GSO_UDP_L4 5u

#define OFFLOAD_PIECES_MAX 6u
#define OFFLOAD_PIECE_MAX 1400u

struct vm1;
struct net_header;

/* What is left to the device of a frame of so many pieces over IPv4 or IPv6. */
struct offload_shape {
	bool ipv6;
	uint32_t pieces, piece_bytes;
};

/* The next shape, of at most `most` pieces, of those that were negotiated. */
struct offload_shape offload_draw(const struct vm1 *vm1, uint64_t number, uint32_t most,
				  uint32_t piece_bytes);
/* Writes the headers of frame, whose pieces stand already behind them, and its virtio-net header. */
void offload_seal(uint8_t *frame, const struct offload_shape *shape, struct net_header *header);
uint32_t offload_header_bytes(bool ipv6);
/* The same of a datagram over IPv4, in a frame of so many bytes; its headers are DATAGRAM_HEADER_BYTES. */
#define DATAGRAM_HEADER_BYTES 42u
void offload_seal_datagram(uint8_t *frame, uint32_t bytes, struct net_header *header);
/* 5.1.6.4.1: whether a received header says only what was negotiated. */
bool offload_header_is_allowed(const struct vm1 *vm1, const struct net_header *header);
/*
 * Where the pieces of a received frame begin; 0 where it is no such frame. *intact: lengths and checksums are as
 * they have to be, and the header agrees with the frame. *first: the TCP sequence number, which is the first
 * piece's place.
 */
uint32_t offload_open(const uint8_t *frame, uint32_t length, const struct net_header *header,
		      uint32_t *first, bool *intact);

#endif
