/* SPDX-License-Identifier: BSD-3-Clause */
/* Fragmentation: a UDP datagram's checksum is completed, then each part of the datagram goes behind the headers that every
 * fragment has (RFC 791; RFC 8200, 4.5). */
#include "offload.h"

#include "checksum.h"

/* Where fields are, beside those of headers.h. */
#define IPV4_OFFSET 6u /* with flags, which here are none but MORE: they are fragments, whatever VM1 wrote */
#define IPV4_MORE 0x2000u
#define OPTION_END 0u
#define OPTION_NOTHING 1u
#define OPTION_COPIED 0x80u /* it is in every fragment: RFC 791, 3.1 */
#define IPV6_MORE 1u

#define PIECE_BYTES 2048u

/* One datagram's fragments. */
struct series {
	struct headers headers;
	uint32_t bytes; /* of the datagram, with IPv6 headers that only the first fragment has */
	uint32_t each;  /* of these in a fragment; in the last what is left */
	uint32_t front; /* bytes of a fragment before these */
	uint32_t count; /* 1: it is no fragment */
	uint32_t identification;
};

static bool series_begin(struct series *series, const struct rk_frame *frame)
{
	const struct headers *headers = &series->headers;

	if (!offload_headers(&series->headers, frame))
		return false;
	series->bytes = frame->bytes - headers->fragmentable;
	series->each = frame->offload.segment_bytes;
	series->count = (series->bytes + series->each - 1) / series->each;
	series->front = headers->fragmentable;
	if (headers->ipv6 && series->count > 1)
		series->front += IPV6_FRAGMENT_BYTES;
	return true;
}

/* Options that are not for every fragment become nothing, which is as long. */
static void forget_options(uint8_t *option, const uint8_t *end)
{
	while (option < end && *option != OPTION_END) {
		uint32_t bytes = 1;

		if (*option != OPTION_NOTHING) {
			bytes = option + 1 < end ? option[1] : 0;
			if (bytes < 2 || bytes > (size_t)(end - option))
				return;
			if (!(*option & OPTION_COPIED))
				memset(option, OPTION_NOTHING, bytes);
		}
		option += bytes;
	}
}

static void number_ipv4(const struct series *series, uint32_t index, uint32_t bytes, uint8_t *frame)
{
	uint8_t *ip = frame + series->headers.network;
	const uint32_t ip_bytes = series->headers.transport - series->headers.network;

	put16(ip + IPV4_LENGTH, ip_bytes + bytes);
	if (series->count > 1)
		put16(ip + IPV4_OFFSET, index * series->each / 8 |
						(index + 1 < series->count ? IPV4_MORE : 0));
	if (index)
		forget_options(ip + IPV4_BYTES, ip + ip_bytes);
	put16(ip + IPV4_CHECKSUM, 0);
	checksum_store(ip + IPV4_CHECKSUM, checksum_sum(ip, ip_bytes));
}

static void number_ipv6(const struct series *series, uint32_t index, uint32_t bytes, uint8_t *frame)
{
	const struct headers *headers = &series->headers;
	uint8_t *fragment = frame + headers->fragmentable;

	put16(frame + headers->network + IPV6_LENGTH,
	      series->front - headers->network - IPV6_BYTES + bytes);
	if (series->count == 1)
		return;
	frame[headers->next_header] = IPV6_FRAGMENT;
	fragment[0] = headers->bytes[headers->next_header];
	fragment[1] = 0;
	put16(fragment + 2, index * series->each | (index + 1 < series->count ? IPV6_MORE : 0));
	put32(fragment + 4, series->identification);
}

/* The headers that are not before each part go from their judged copy; the checksum is still to come. */
static void place_headers(const struct series *series, bool checksum, uint8_t *part)
{
	const struct headers *headers = &series->headers;
	uint8_t *udp = part + headers->transport - headers->fragmentable;

	memcpy(part, headers->bytes + headers->fragmentable, headers->end - headers->fragmentable);
	if (!checksum)
		return;
	put16(udp + UDP_LENGTH, headers->fragmentable + series->bytes - headers->transport);
	put16(udp + UDP_CHECKSUM, 0);
}

/* One fragment, of so many bytes of the datagram. */
static void make(const struct series *series, uint32_t index, uint32_t bytes, uint8_t *frame)
{
	memcpy(frame, series->headers.bytes, series->headers.fragmentable);
	(series->headers.ipv6 ? number_ipv6 : number_ipv4)(series, index, bytes, frame);
}

/* The sum of what there is no room for yet. */
static uint64_t sum_rest(struct offload_reader *from, uint32_t bytes)
{
	uint8_t piece[PIECE_BYTES];
	uint64_t sum = 0;

	while (bytes) {
		const uint32_t part = bytes < PIECE_BYTES ? bytes : PIECE_BYTES;

		offload_read(from, piece, part);
		sum += checksum_sum(piece, part);
		bytes -= part;
	}
	return sum;
}

/* Of the whole datagram, into its first fragment, which begins the room. from is behind what was made. */
static void complete(const struct series *series, struct offload_reader *from,
		     const struct offload_room *room, const struct offload_made *made)
{
	const struct headers *headers = &series->headers;
	const uint32_t skip = headers->transport - headers->fragmentable;
	uint8_t *udp = room->memory + series->front + skip;
	uint32_t left = series->bytes;
	uint64_t sum = 0;

	for (uint32_t i = 0; i < made->frames; i++) {
		const uint32_t part = room->frames[i].bytes - series->front;
		const uint8_t *start = room->segments[i].iov_base;
		const uint32_t first = i ? 0 : skip;

		sum += checksum_sum(start + series->front + first, part - first);
		left -= part;
	}
	sum += sum_rest(from, left);
	sum += offload_pseudo_sum(headers, room->memory, series->bytes - skip);
	checksum_store(udp + UDP_CHECKSUM, sum);
}

enum rk_drop fragment_make(const struct rk_frame *frame, uint32_t first,
			   const struct offload_room *room, struct offload_made *made)
{
	/* What is not to be completed is there already, of the whole, and stays. */
	const bool checksum = frame->offload.flags & RK_OFFLOAD_NEEDS_CSUM;
	struct offload_reader from = {.segment = frame->segments};
	struct series series = {.identification = room->identification};

	*made = (struct offload_made){0};
	if (!series_begin(&series, frame))
		return RK_DROP_BAD_OFFLOAD;
	made->total = series.count;
	if (first >= made->total)
		return RK_SENT;
	offload_skip(&from, series.headers.fragmentable + (size_t)first * series.each);
	for (uint32_t i = 0; i < room->frame_count && first + i < series.count; i++) {
		const uint32_t left = series.bytes - (first + i) * series.each;
		const uint32_t bytes = left < series.each ? left : series.each;
		uint8_t *to = room->memory + made->memory_bytes;

		if (series.front + bytes > room->memory_bytes - made->memory_bytes)
			break;
		offload_read(&from, to + series.front, bytes);
		if (first + i == 0)
			place_headers(&series, checksum, to + series.front);
		make(&series, first + i, bytes, to);
		room->segments[i] = (struct iovec){to, series.front + bytes};
		room->frames[i] = (struct rk_frame){.segments = &room->segments[i],
						    .segment_count = 1,
						    .bytes = series.front + bytes};
		made->frames++;
		made->memory_bytes += series.front + bytes;
	}
	if (checksum && first == 0 && made->frames)
		complete(&series, &from, room, made);
	return RK_SENT;
}
