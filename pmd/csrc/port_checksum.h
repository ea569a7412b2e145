/* SPDX-License-Identifier: BSD-3-Clause */
/* Checksums that a sender on this machine left to its network card. */
#ifndef PORT_CHECKSUM_H
#define PORT_CHECKSUM_H

#include <stdint.h>

/*
 * Finishes the TCP or UDP checksum of an IPv4 or IPv6 frame whose field holds the pseudo header's sum,
 * as the kernel leaves it (CHECKSUM_PARTIAL). The frame is in private memory. Others stay as they are.
 */
void checksum_finish(uint8_t *frame, uint32_t bytes);

#endif
