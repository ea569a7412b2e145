/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * near_frames() and near_targets() of a packed ring by four chains at a time, a vector being their descriptors as
 * they lie in the ring: addresses in its even words, lengths in the odd ones. Four of which one is not plain, or not
 * surely in the region, are left to those: what they decide nothing here decides otherwise.
 */
#ifndef PLAIN_AVX512_H
#define PLAIN_AVX512_H

#include "isa.h"
#include "plain_frame.h"

#if defined(__x86_64__) && LAYOUT_PACKED
#include <immintrin.h>

#define FIRSTS 0x55  /* the even words, as a mask */
#define SECONDS 0xaa

_Static_assert(sizeof(struct iovec) == 16 && offsetof(struct iovec, iov_len) == 8 &&
		       sizeof(struct packed_desc) == 16,
	       "four segments are a vector as four descriptors are");
_Static_assert(sizeof(struct rk_frame) == 32 && offsetof(struct rk_frame, segment_count) == 8 &&
		       offsetof(struct rk_frame, bytes) == 12 && offsetof(struct rk_frame, verdict) == 16,
	       "frames are written and read by their words");

AVX512 static inline __m512i in_turn(uint64_t first, uint64_t second)
{
	return _mm512_set4_epi64((int64_t)second, (int64_t)first, (int64_t)second, (int64_t)first);
}

/* Addresses and lengths alone. */
AVX512 static inline __m512i four_parts(const struct packed_desc *descs)
{
	return _mm512_and_si512(_mm512_loadu_si512(descs), in_turn(UINT64_MAX, UINT32_MAX));
}

/* Whether all of four buffers is in the region; their offsets in it are the even words. */
AVX512 static inline bool four_near(__m512i parts, __m512i offsets, uint64_t length)
{
	const __m512i lengths = _mm512_permutex_epi64(parts, 0xb1);
	const __m512i region = _mm512_set1_epi64((int64_t)length);
	const __m512i ends = _mm512_add_epi64(offsets, lengths);

	return (_mm512_mask_cmpge_epu64_mask(FIRSTS, offsets, region) |
		_mm512_mask_cmpgt_epu64_mask(FIRSTS, ends, region)) == 0;
}

/* set_frame() of four frames of one segment each, which are a vector. */
AVX512 static inline void four_frames(__m512i made, struct rk_frame *frames, struct iovec *segments)
{
	const __m512i where = _mm512_add_epi64(_mm512_set1_epi64((intptr_t)segments),
					       _mm512_setr_epi64(0, 0, 16, 0, 32, 0, 48, 0));
	const __m512i one = _mm512_set1_epi64(1);
	/* bytes, segment_count; .segments */
	const __m512i words =
		_mm512_mask_or_epi64(where, SECONDS, _mm512_slli_epi64(made, 32), one);

	_mm512_storeu_si512(segments, made);
	_mm512_storeu_si512(&frames[0], _mm512_maskz_permutexvar_epi64(
						0x33, _mm512_setr_epi64(0, 1, 0, 0, 2, 3, 0, 0), words));
	_mm512_storeu_si512(&frames[2], _mm512_maskz_permutexvar_epi64(
						0x33, _mm512_setr_epi64(4, 5, 0, 0, 6, 7, 0, 0), words));
}

/* How many chains from the first on are frames: a multiple of four. */
AVX512 static __attribute__((noinline, unused)) uint32_t
near_frames_avx512(struct rk_queue *queue, const struct packed_desc *descs, uint32_t count,
		   struct rk_frame *frames, struct iovec *segments)
{
	const struct rk_region near = ring_near(queue, RK_READ);
	const uint32_t header = queue->header_bytes;
	const __m512i begin = in_turn(near.bus, header + ETHERNET_HEADER_BYTES);
	const __m512i made = in_turn(near.host + header, ETHERNET_HEADER_BYTES);
	const __m512i most = _mm512_set1_epi64(RK_FRAME_MAX - ETHERNET_HEADER_BYTES);
	uint32_t i;

	for (i = 0; i + 4 <= count; i += 4) {
		const __m512i parts = four_parts(&descs[i]);
		const __m512i offsets = _mm512_sub_epi64(parts, begin);

		if (_mm512_mask_cmpgt_epu64_mask(SECONDS, offsets, most) ||
		    !four_near(parts, offsets, near.length))
			break;
		four_frames(_mm512_add_epi64(offsets, made), &frames[i], &segments[i]);
	}
	return i;
}

/* What each of four frames needs of a buffer beside a header: the odd words. */
AVX512 static inline __m512i four_needs(const struct rk_frame *frames)
{
	const __m512i words = _mm512_permutex2var_epi64(_mm512_loadu_si512(&frames[0]),
							_mm512_setr_epi64(0, 1, 0, 5, 0, 9, 0, 13),
							_mm512_loadu_si512(&frames[2]));

	return _mm512_srli_epi64(words, 32);
}

/* How many chains from the first on hold a frame each: a multiple of four. */
AVX512 static __attribute__((noinline, unused)) uint32_t
near_targets_avx512(struct rk_queue *queue, const struct rk_frame *frames,
		    const struct packed_desc *descs, uint32_t count, struct shm **targets)
{
	const struct rk_region near = ring_near(queue, RK_WRITE);
	const uint32_t header = queue->header_bytes;
	const __m512i begin = in_turn(near.bus, 0), host = in_turn(near.host, 0);
	const __m512i headers = _mm512_set1_epi64(header);
	const __m512i firsts = _mm512_setr_epi64(0, 2, 4, 6, 0, 0, 0, 0);
	uint32_t i;

	for (i = 0; i + 4 <= count; i += 4) {
		const __m512i parts = four_parts(&descs[i]);
		const __m512i offsets = _mm512_sub_epi64(parts, begin);
		const __m512i needs = _mm512_add_epi64(four_needs(&frames[i]), headers);

		if (_mm512_mask_cmplt_epu64_mask(SECONDS, parts, needs) ||
		    !four_near(parts, offsets, near.length))
			break;
		_mm256_storeu_si256((__m256i *)&targets[i],
				    _mm512_castsi512_si256(_mm512_permutexvar_epi64(
					    firsts, _mm512_add_epi64(offsets, host))));
		for (uint32_t k = i; k < i + 4; k++)
			shm_prefetch_frame_write(targets[k], header + frames[k].bytes);
	}
	return i;
}

#endif
#endif
