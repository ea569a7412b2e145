/* SPDX-License-Identifier: BSD-3-Clause */
/* The Internet checksum (RFC 1071) of frames whose sender left it to hardware. */
#include "port_checksum.h"

#include <linux/if_ether.h>
#include <netinet/in.h>

static uint32_t get16(const uint8_t *from)
{
	return (uint32_t)from[0] << 8 | from[1];
}

/* Where the transport header starts and which it is; 0 if it is not found within the frame. */
static uint32_t transport(const uint8_t *frame, uint32_t bytes, uint8_t *protocol)
{
	uint32_t at = ETH_HLEN;
	uint32_t type = get16(frame + at - 2);

	while ((type == ETH_P_8021Q || type == ETH_P_8021AD) && at + 4 <= bytes) {
		type = get16(frame + at + 2);
		at += 4;
	}
	if (type == ETH_P_IP && at + 20 <= bytes) {
		*protocol = frame[at + 9];
		return at + (frame[at] & 15u) * 4;
	}
	if (type == ETH_P_IPV6 && at + 40 <= bytes) {
		*protocol = frame[at + 6];
		return at + 40;
	}
	return 0;
}

void checksum_finish(uint8_t *frame, uint32_t bytes)
{
	uint8_t protocol;
	uint32_t start, field;
	uint64_t sum = 0;

	if (bytes < ETH_HLEN)
		return;
	start = transport(frame, bytes, &protocol);
	if (start == 0 || (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP))
		return;
	field = start + (protocol == IPPROTO_TCP ? 16 : 6);
	if (field + 2 > bytes)
		return;
	for (uint32_t at = start; at + 2 <= bytes; at += 2)
		sum += get16(frame + at);
	if ((bytes - start) % 2)
		sum += (uint32_t)frame[bytes - 1] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	sum = ~sum & 0xffff;
	if (sum == 0 && protocol == IPPROTO_UDP)
		sum = 0xffff; /* zero would say there is none: RFC 768 */
	frame[field] = (uint8_t)(sum >> 8);
	frame[field + 1] = (uint8_t)sum;
}
