/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * near_frames() of a packed ring by four chains at a time. Four of which one is not plain, or not surely in the
 * region, are left to it: what it decides nothing here decides otherwise. Of split rings there is none, because it
 * gained nothing (docs/performance.md).
 */
#ifndef PLAIN_AVX2_H
#define PLAIN_AVX2_H

#include "isa.h"
#include "plain_frame.h"

#if defined(__x86_64__) && LAYOUT_PACKED
#include <immintrin.h>

/* Of four descriptors: the addresses, and what follows them. */
struct four {
	__m256i address, rest;
};

/* They have been read, and have the flags they must. */
AVX2 static inline struct four four_read(const struct packed_desc *descs)
{
	const __m128i *at = (const __m128i *)descs;
	const __m256i odd = _mm256_set_m128i(_mm_loadu_si128(at + 2), _mm_loadu_si128(at));
	const __m256i even = _mm256_set_m128i(_mm_loadu_si128(at + 3), _mm_loadu_si128(at + 1));

	return (struct four){_mm256_unpacklo_epi64(odd, even), _mm256_unpackhi_epi64(odd, even)};
}

/* Two vectors' words by turns: a, b of the first, then of the second, the third and the fourth. */
AVX2 static inline void four_weave(__m256i a, __m256i b, __m256i *first_two, __m256i *last_two)
{
	const __m256i odd = _mm256_unpacklo_epi64(a, b), even = _mm256_unpackhi_epi64(a, b);

	*first_two = _mm256_permute2x128_si256(odd, even, 0x20);
	*last_two = _mm256_permute2x128_si256(odd, even, 0x31);
}

_Static_assert(sizeof(struct rk_frame) == 32 && offsetof(struct rk_frame, segment_count) == 8 &&
		       offsetof(struct rk_frame, bytes) == 12 && sizeof(struct iovec) == 16,
	       "four_store() writes them by their words");

/* set_frame() of four frames of one segment each. */
AVX2 static inline void four_store(__m256i host, __m256i bytes, struct rk_frame *frames,
				   struct iovec *segments)
{
	const __m256i where = _mm256_add_epi64(_mm256_set1_epi64x((intptr_t)segments),
					       _mm256_setr_epi64x(0, 16, 32, 48));
	const __m256i counts =
		_mm256_or_si256(_mm256_slli_epi64(bytes, 32), _mm256_set1_epi64x(1));
	__m256i words[4], zero = _mm256_setzero_si256();

	four_weave(host, bytes, &words[0], &words[1]);
	_mm256_storeu_si256((__m256i *)&segments[0], words[0]);
	_mm256_storeu_si256((__m256i *)&segments[2], words[1]);
	four_weave(where, counts, &words[0], &words[2]);
	words[1] = _mm256_permute2x128_si256(words[0], zero, 0x21);
	words[3] = _mm256_permute2x128_si256(words[2], zero, 0x21);
	words[0] = _mm256_permute2x128_si256(words[0], zero, 0x20);
	words[2] = _mm256_permute2x128_si256(words[2], zero, 0x20);
	for (uint32_t i = 0; i < 4; i++)
		_mm256_storeu_si256((__m256i *)&frames[i], words[i]);
}

/* How many chains from the first on are frames: a multiple of four. */
AVX2 static __attribute__((noinline)) uint32_t near_frames_avx2(struct rk_queue *queue,
								const struct packed_desc *descs,
								uint32_t count,
								struct rk_frame *frames,
								struct iovec *segments)
{
	const struct rk_region near = ring_near(queue, RK_READ);
	const uint32_t header = queue->header_bytes;
	const __m256i bus = _mm256_set1_epi64x((int64_t)near.bus);
	const __m256i host = _mm256_set1_epi64x((int64_t)(near.host + header));
	const __m256i length = _mm256_set1_epi64x((int64_t)near.length);
	const __m256i least = _mm256_set1_epi64x(header + ETHERNET_HEADER_BYTES);
	const __m256i most = _mm256_set1_epi64x(header + RK_FRAME_MAX);
	uint32_t i;

	for (i = 0; i + 4 <= count; i += 4) {
		const struct four four = four_read(&descs[i]);
		const __m256i bytes = _mm256_and_si256(four.rest, _mm256_set1_epi64x(UINT32_MAX));
		const __m256i offset = _mm256_sub_epi64(four.address, bus);
		__m256i bad = _mm256_or_si256(_mm256_cmpgt_epi64(least, bytes),
					      _mm256_cmpgt_epi64(bytes, most));

		/* 0 <= offset <= length - bytes, as signed numbers, none of which wraps. */
		bad = _mm256_or_si256(bad, _mm256_cmpgt_epi64(_mm256_setzero_si256(), offset));
		bad = _mm256_or_si256(bad,
				      _mm256_cmpgt_epi64(offset, _mm256_sub_epi64(length, bytes)));
		if (!_mm256_testz_si256(bad, _mm256_set1_epi64x(-1)))
			break;
		four_store(_mm256_add_epi64(offset, host),
			   _mm256_sub_epi64(bytes, _mm256_set1_epi64x(header)), &frames[i],
			   &segments[i]);
	}
	return i;
}

#endif
#endif
