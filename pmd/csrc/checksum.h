/* SPDX-License-Identifier: BSD-3-Clause */
/* The Internet checksum (RFC 1071) of private memory. */
#ifndef CHECKSUM_H
#define CHECKSUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The sum of bytes as 16-bit words in the machine's order, an odd last byte with zero after it. Sums of parts
 * that begin at even distances may be added; fewer than 2^31 bytes in all. */
uint64_t checksum_sum(const uint8_t *bytes, size_t count);

/* The checksum of a sum, as it is stored: never 0, which UDP uses for "none" and which means the same (RFC 768). */
uint16_t checksum_of(uint64_t sum);

static inline void checksum_store(uint8_t *to, uint64_t sum)
{
	uint16_t checksum = checksum_of(sum);

	memcpy(to, &checksum, sizeof(checksum));
}

#endif
