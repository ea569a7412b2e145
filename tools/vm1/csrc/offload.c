/* SPDX-License-Identifier: BSD-3-Clause */
#include <string.h>

#include "engine.h"

#define ETHERNET_BYTES 14u
#define TCP_BYTES 20u
#define TCP_SEQUENCE 4u
#define TCP_CHECKSUM 16u
#define PROTOCOL_TCP 6u
#define PROTOCOL_UDP 17u
#define UDP_BYTES 8u
#define UDP_CHECKSUM 6u

static uint32_t ip_bytes(bool ipv6)
{
	return ipv6 ? 40 : 20;
}

uint32_t offload_header_bytes(bool ipv6)
{
	return ETHERNET_BYTES + ip_bytes(ipv6) + TCP_BYTES;
}

static void store16(uint8_t *bytes, uint32_t value)
{
	bytes[0] = (uint8_t)(value >> 8);
	bytes[1] = (uint8_t)value;
}

static uint32_t load16(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] << 8 | bytes[1];
}

static uint32_t load32(const uint8_t *bytes)
{
	return load16(bytes) << 16 | load16(bytes + 2);
}

/* The Internet checksum's sum (RFC 1071), folded, not complemented. */
static uint32_t sum16(const uint8_t *bytes, uint32_t count, uint64_t sum)
{
	for (uint32_t offset = 0; offset + 1 < count; offset += 2)
		sum += load16(bytes + offset);
	if (count % 2)
		sum += (uint32_t)bytes[count - 1] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint32_t)sum;
}

/* Of addresses, protocol and length: what NEEDS_CSUM wants in the checksum's place (5.1.6.2). */
static uint32_t pseudo_sum(const uint8_t *ip, bool ipv6, uint32_t protocol, uint32_t bytes)
{
	return ipv6 ? sum16(ip + 8, 32, protocol + bytes) : sum16(ip + 12, 8, protocol + bytes);
}

struct offload_shape offload_draw(const struct vm1 *vm1, uint64_t number, uint32_t most,
				  uint32_t piece_bytes)
{
	uint32_t offloads = vm1->config.offloads;
	struct offload_shape shape = {
		.ipv6 = number & 1,
		.pieces = 1 + (uint32_t)(number / 2 % OFFLOAD_PIECES_MAX),
		.piece_bytes = piece_bytes < OFFLOAD_PIECE_MAX ? piece_bytes : OFFLOAD_PIECE_MAX,
	};

	if (!(offloads & (shape.ipv6 ? VM1_OFFLOAD_TSO6 : VM1_OFFLOAD_TSO4)))
		shape.pieces = 1;
	if (shape.pieces > most)
		shape.pieces = most;
	return shape;
}

static void write_ip(uint8_t *ip, bool ipv6, uint8_t protocol, uint32_t bytes)
{
	if (ipv6) {
		ip[0] = 0x60;
		store16(ip + 4, bytes);
		ip[6] = protocol;
		ip[7] = 64;
		memcpy(ip + 8, "\x20\x01\x0d\xb8", 4); /* RFC 3849 */
		ip[23] = 1;
		memcpy(ip + 24, "\x20\x01\x0d\xb8", 4);
		ip[39] = 2;
		return;
	}
	ip[0] = 0x45;
	store16(ip + 2, 20 + bytes);
	ip[8] = 64;
	ip[9] = protocol;
	memcpy(ip + 12, "\xc0\x00\x02\x01\xc0\x00\x02\x02", 8); /* RFC 5737 */
	store16(ip + 10, ~sum16(ip, 20, 0) & 0xffff);
}

void offload_seal(uint8_t *frame, const struct offload_shape *shape, struct net_header *header)
{
	uint8_t *ip = frame + ETHERNET_BYTES, *tcp = ip + ip_bytes(shape->ipv6);
	uint32_t tcp_bytes = TCP_BYTES + shape->pieces * shape->piece_bytes;

	memset(ip, 0, ip_bytes(shape->ipv6) + TCP_BYTES);
	store16(frame + 12, shape->ipv6 ? 0x86dd : 0x0800);
	write_ip(ip, shape->ipv6, PROTOCOL_TCP, tcp_bytes);
	store16(tcp, 1024);
	store16(tcp + 2, 1024);
	tcp[12] = TCP_BYTES / 4 << 4;
	tcp[13] = 0x10; /* ACK */
	store16(tcp + 14, 0xffff);
	store16(tcp + TCP_CHECKSUM, pseudo_sum(ip, shape->ipv6, PROTOCOL_TCP, tcp_bytes));
	*header = (struct net_header){
		.flags = NET_F_NEEDS_CSUM,
		.csum_start = (uint16_t)(tcp - frame),
		.csum_offset = TCP_CHECKSUM,
	};
	if (shape->pieces > 1) {
		header->gso_type = shape->ipv6 ? NET_GSO_TCPV6 : NET_GSO_TCPV4;
		header->gso_size = (uint16_t)shape->piece_bytes;
		header->hdr_len = (uint16_t)offload_header_bytes(shape->ipv6);
	}
}

void offload_seal_datagram(uint8_t *frame, uint32_t bytes, struct net_header *header)
{
	uint8_t *ip = frame + ETHERNET_BYTES, *udp = ip + ip_bytes(false);
	const uint32_t udp_bytes = bytes - (uint32_t)(udp - frame);

	memset(ip, 0, ip_bytes(false) + UDP_BYTES);
	store16(frame + 12, 0x0800);
	write_ip(ip, false, PROTOCOL_UDP, udp_bytes);
	store16(udp, 1024);
	store16(udp + 2, 1024);
	store16(udp + 4, udp_bytes);
	store16(udp + UDP_CHECKSUM, pseudo_sum(ip, false, PROTOCOL_UDP, udp_bytes));
	*header = (struct net_header){
		.flags = NET_F_NEEDS_CSUM,
		.csum_start = (uint16_t)(udp - frame),
		.csum_offset = UDP_CHECKSUM,
	};
}

bool offload_header_is_allowed(const struct vm1 *vm1, const struct net_header *header)
{
	uint32_t offloads = vm1->config.offloads;
	uint32_t flags = NET_F_NEEDS_CSUM | NET_F_DATA_VALID;

	if (header->flags & ~(offloads & VM1_OFFLOAD_GUEST_CSUM ? flags : 0))
		return false;
	/* A frame to be cut is one whose checksum is to be made, too. */
	switch (header->gso_type) {
	case NET_GSO_NONE:
		return true;
	case NET_GSO_TCPV4:
		offloads &= VM1_OFFLOAD_GUEST_TSO4;
		break;
	case NET_GSO_TCPV6:
		offloads &= VM1_OFFLOAD_GUEST_TSO6;
		break;
	default:
		return false;
	}
	return offloads && header->gso_size && header->flags & NET_F_NEEDS_CSUM;
}

static bool ip_is_intact(const uint8_t *ip, bool ipv6, uint32_t bytes)
{
	if (ipv6)
		return ip[0] == 0x60 && ip[6] == PROTOCOL_TCP && load16(ip + 4) + 40 == bytes;
	return ip[0] == 0x45 && ip[9] == PROTOCOL_TCP && load16(ip + 2) == bytes &&
	       sum16(ip, 20, 0) == 0xffff;
}

uint32_t offload_open(const uint8_t *frame, uint32_t length, const struct net_header *header,
		      uint32_t *first, bool *intact)
{
	uint32_t type = load16(frame + 12), pseudo, tcp_bytes;
	bool ipv6 = type == 0x86dd;
	const uint8_t *ip = frame + ETHERNET_BYTES, *tcp = ip + ip_bytes(ipv6);

	if ((type != 0x0800 && !ipv6) || length <= offload_header_bytes(ipv6))
		return 0;
	tcp_bytes = length - ETHERNET_BYTES - ip_bytes(ipv6);
	pseudo = pseudo_sum(ip, ipv6, PROTOCOL_TCP, tcp_bytes);
	*first = load32(tcp + TCP_SEQUENCE);
	*intact = ip_is_intact(ip, ipv6, length - ETHERNET_BYTES) &&
		  tcp[12] == TCP_BYTES / 4 << 4;
	if (header->flags & NET_F_NEEDS_CSUM)
		*intact &= header->csum_start == tcp - frame &&
			   header->csum_offset == TCP_CHECKSUM &&
			   load16(tcp + TCP_CHECKSUM) == pseudo;
	else
		*intact &= sum16(tcp, tcp_bytes, pseudo) == 0xffff;
	if (header->gso_type != NET_GSO_NONE)
		*intact &= header->gso_type == (ipv6 ? NET_GSO_TCPV6 : NET_GSO_TCPV4) &&
			   header->gso_size < tcp_bytes - TCP_BYTES;
	return offload_header_bytes(ipv6);
}
