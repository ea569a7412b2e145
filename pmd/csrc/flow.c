/* SPDX-License-Identifier: BSD-3-Clause */
/* Every step is judged against what was copied before it is taken. What it comes to decides no more than a queue. */
#include "flow.h"

#include "offload.h"
#include "shm.h"

#define ADDRESS_BYTES 6u
#define EXTENSION_BYTES 8u
#define IP_PROTOCOL_SCTP 132u

/* One end of a flow; both are added, so that it does not matter which one sends. */
struct ends {
	uint64_t source, destination;
	uint32_t protocol;
};

/* Spreads each bit over the others: an odd number near 2^64 divided by the golden ratio, twice. */
static inline uint64_t mix(uint64_t value)
{
	value *= 0x9e3779b97f4a7c15ull;
	value = (value ^ value >> 29) * 0x9e3779b97f4a7c15ull;
	return value ^ value >> 32;
}

static inline uint64_t get64(const uint8_t *from)
{
	return (uint64_t)get32(from) << 32 | get32(from + 4);
}

/* Adds the ports, where there are any at that place. */
static void add_ports(struct ends *ends, const uint8_t *bytes, uint32_t at, uint32_t have)
{
	if (ends->protocol != IP_PROTOCOL_TCP && ends->protocol != IP_PROTOCOL_UDP &&
	    ends->protocol != IP_PROTOCOL_SCTP)
		return;
	if (at + 4 > have)
		return;
	ends->source = mix(ends->source + get16(bytes + at));
	ends->destination = mix(ends->destination + get16(bytes + at + 2));
}

static void read_ipv4(struct ends *ends, const uint8_t *bytes, uint32_t network, uint32_t have)
{
	const uint8_t *ip = bytes + network;

	ends->source = mix(get32(ip + 12));
	ends->destination = mix(get32(ip + 16));
	ends->protocol = ip[9];
	if (!(get16(ip + 6) & IPV4_FRAGMENT))
		add_ports(ends, bytes, network + (ip[0] & 15u) * 4, have);
}

static void read_ipv6(struct ends *ends, const uint8_t *bytes, uint32_t network, uint32_t have)
{
	const uint8_t *ip = bytes + network;
	uint32_t at = network + IPV6_BYTES;
	uint8_t next = ip[6];

	ends->source = mix(mix(get64(ip + 8)) + get64(ip + 16));
	ends->destination = mix(mix(get64(ip + 24)) + get64(ip + 32));
	while (headers_is_extension(next) && at + EXTENSION_BYTES <= have) {
		next = bytes[at];
		at += EXTENSION_BYTES * (bytes[at + 1] + 1u);
	}
	ends->protocol = next; /* a fragment header too: then without ports */
	add_ports(ends, bytes, at, have);
}

static void read_ends(struct ends *ends, const uint8_t *bytes, uint32_t have)
{
	uint32_t network = ETHERNET_BYTES, type = get16(bytes + ETHERNET_BYTES - 2);

	for (uint32_t tags = 0; tags < TAGS_MAX && headers_is_tag(type) && network + TAG_BYTES <= have;
	     tags++) {
		type = get16(bytes + network + 2);
		network += TAG_BYTES;
	}
	if (type == TYPE_IPV4 && network + IPV4_BYTES <= have) {
		read_ipv4(ends, bytes, network, have);
	} else if (type == TYPE_IPV6 && network + IPV6_BYTES <= have) {
		read_ipv6(ends, bytes, network, have);
	} else {
		ends->source = mix(get64(bytes + ADDRESS_BYTES) >> 16);
		ends->destination = mix(get64(bytes) >> 16);
		ends->protocol = type;
	}
}

uint32_t flow_hash(const struct rk_frame *frame)
{
	const uint32_t have = frame->bytes < FLOW_BYTES ? frame->bytes : FLOW_BYTES;
	struct offload_reader from = {.segment = frame->segments};
	uint8_t bytes[FLOW_BYTES];
	struct ends ends;

	if (have < ETHERNET_BYTES)
		return 0;
	offload_read(&from, bytes, have);
	read_ends(&ends, bytes, have);
	return (uint32_t)(mix(ends.source + ends.destination + ends.protocol) >> 32);
}
