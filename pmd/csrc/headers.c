/* SPDX-License-Identifier: BSD-3-Clause */
/* Every step is judged against what was copied before it is taken. */
#include "headers.h"

#include "shm.h"

#define TCP_BYTES 20u
#define UDP_BYTES 8u

static uint32_t copy_start(uint8_t *to, const struct rk_frame *frame)
{
	uint32_t copied = 0;

	for (uint32_t i = 0; i < frame->segment_count && copied < HEADERS_MAX; i++) {
		const struct iovec *segment = &frame->segments[i];
		size_t part = segment->iov_len < HEADERS_MAX - copied ? segment->iov_len
								       : HEADERS_MAX - copied;

		shm_copy_in(to + copied, segment->iov_base, part);
		copied += (uint32_t)part;
	}
	return copied;
}

static bool read_ipv4(struct headers *headers, uint32_t have)
{
	const uint8_t *ip = headers->bytes + headers->network;

	if (headers->network + IPV4_BYTES > have || ip[0] >> 4 != 4 || (ip[0] & 15) < 5)
		return false;
	if (get16(ip + 6) & IPV4_FRAGMENT)
		return false;
	headers->protocol = ip[9];
	headers->transport = headers->network + (ip[0] & 15u) * 4;
	headers->fragmentable = headers->transport;
	return headers->transport <= have;
}

static bool read_ipv6(struct headers *headers, uint32_t have)
{
	const uint8_t *ip = headers->bytes + headers->network;
	uint32_t at = headers->network + IPV6_BYTES;
	uint8_t next;

	if (at > have || ip[0] >> 4 != 6)
		return false;
	next = ip[6];
	headers->fragmentable = at;
	headers->next_header = headers->network + 6;
	while (headers_is_extension(next)) {
		const uint8_t *extension = headers->bytes + at;

		if (at + 8 > have)
			return false;
		/* Segments left: the checksum is of another destination than the header's (RFC 8200, 8.1). */
		if (next == IPV6_ROUTING && extension[3])
			return false;
		at += 8u * (extension[1] + 1u);
		if (next != IPV6_DESTINATION) {
			headers->fragmentable = at;
			headers->next_header = (uint32_t)(extension - headers->bytes);
		}
		next = extension[0];
	}
	headers->protocol = next;
	headers->transport = at;
	return at <= have;
}

static bool read_transport(struct headers *headers, uint32_t have)
{
	const uint8_t *transport = headers->bytes + headers->transport;
	uint32_t bytes;

	if (headers->protocol == IP_PROTOCOL_UDP) {
		bytes = UDP_BYTES;
	} else if (headers->protocol == IP_PROTOCOL_TCP) {
		if (headers->transport + TCP_BYTES > have || transport[12] >> 4 < 5)
			return false;
		bytes = (transport[12] >> 4) * 4u;
	} else {
		return false;
	}
	headers->end = headers->transport + bytes;
	return headers->end <= have;
}

bool headers_read(struct headers *headers, const struct rk_frame *frame)
{
	uint32_t have = copy_start(headers->bytes, frame);
	uint32_t tags = 0, type;

	headers->network = ETHERNET_BYTES;
	if (have < ETHERNET_BYTES)
		return false;
	type = get16(headers->bytes + ETHERNET_BYTES - 2);
	while (headers_is_tag(type)) {
		if (tags++ == TAGS_MAX || headers->network + TAG_BYTES > have)
			return false;
		type = get16(headers->bytes + headers->network + 2);
		headers->network += TAG_BYTES;
	}
	headers->ipv6 = type == TYPE_IPV6;
	if (!headers->ipv6 && type != TYPE_IPV4)
		return false;
	return (headers->ipv6 ? read_ipv6 : read_ipv4)(headers, have) &&
	       read_transport(headers, have);
}
