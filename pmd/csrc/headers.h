/* SPDX-License-Identifier: BSD-3-Clause */
/* A frame's headers, from Ethernet to TCP or UDP, copied into private memory and found their way through there. */
#ifndef HEADERS_H
#define HEADERS_H

#include "ringk.h"

#include <stdbool.h>

/* Ethernet, two tags, the longest IPv4 and TCP headers are 142 bytes; with IPv6 extension headers more. */
#define HEADERS_MAX 256u

#define ETHERNET_BYTES 14u
#define TAG_BYTES 4u
#define TAGS_MAX 2u
#define TYPE_IPV4 0x0800u
#define TYPE_IPV6 0x86ddu
#define TYPE_TAG 0x8100u         /* 802.1Q */
#define TYPE_SERVICE_TAG 0x88a8u /* 802.1ad */

#define IPV4_BYTES 20u
#define IPV4_LENGTH 2u    /* where fields are */
#define IPV4_CHECKSUM 10u
#define IPV4_FRAGMENT 0x3fffu /* more fragments, or not the first: RFC 791 */
#define IPV6_BYTES 40u
#define IPV6_LENGTH 4u
#define IPV6_HOP_BY_HOP 0u /* RFC 8200, 4 */
#define IPV6_ROUTING 43u
#define IPV6_FRAGMENT 44u
#define IPV6_DESTINATION 60u
#define IPV6_FRAGMENT_BYTES 8u

#define IP_PROTOCOL_TCP 6u
#define IP_PROTOCOL_UDP 17u
#define TCP_CHECKSUM 16u
#define UDP_LENGTH 4u
#define UDP_CHECKSUM 6u

struct headers {
	uint8_t bytes[HEADERS_MAX];
	uint32_t network;   /* where the IP header starts */
	uint32_t transport; /* where TCP or UDP starts */
	uint32_t end;       /* where the payload starts */
	uint32_t fragmentable; /* where what every fragment has ends: RFC 791, RFC 8200, 4.5 */
	uint32_t next_header;  /* IPv6: where it says what follows there */
	uint8_t protocol;   /* IP_PROTOCOL_* */
	bool ipv6;
};

/*
 * Reads the frame's first bytes once; false where they are not, within themselves and the frame, Ethernet, up to
 * two tags (802.1Q, 802.1ad), unfragmented IPv4 or IPv6 with hop-by-hop, destination and used-up routing headers,
 * and TCP or UDP. What the headers say of the frame's length is not looked at.
 */
bool headers_read(struct headers *headers, const struct rk_frame *frame);

/* Whether a type says that a tag follows, and then another type. */
static inline bool headers_is_tag(uint32_t type)
{
	return type == TYPE_TAG || type == TYPE_SERVICE_TAG;
}

/* Whether a protocol of IPv6 is an extension header with another one behind it, of those looked into. */
static inline bool headers_is_extension(uint32_t protocol)
{
	return protocol == IPV6_HOP_BY_HOP || protocol == IPV6_ROUTING ||
	       protocol == IPV6_DESTINATION;
}

/* Byte order of the network. */
static inline uint32_t get16(const uint8_t *from)
{
	return (uint32_t)from[0] << 8 | from[1];
}

static inline uint32_t get32(const uint8_t *from)
{
	return get16(from) << 16 | get16(from + 2);
}

static inline void put16(uint8_t *to, uint32_t value)
{
	to[0] = (uint8_t)(value >> 8);
	to[1] = (uint8_t)value;
}

static inline void put32(uint8_t *to, uint32_t value)
{
	put16(to, value >> 16);
	put16(to + 2, value);
}

#endif
