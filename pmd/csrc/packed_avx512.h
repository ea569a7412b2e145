/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A packed ring's chains by four, whose descriptors are a line: read, and returned. Each function does what it can so,
 * from the first on, and tells how many; the rest is left to the code that it stands beside.
 */
#ifndef PACKED_AVX512_H
#define PACKED_AVX512_H

#include "isa.h"
#include "packed.h"

#if defined(__x86_64__)
#include <immintrin.h>

_Static_assert(sizeof(struct head) == 4 && offsetof(struct head, span) == 2 &&
		       sizeof(struct pending) == 16 && offsetof(struct pending, place) == 8,
	       "heads and pending ones are read and written by their words");

/* Of packed_plain(), up to the ring's end; flags: all of them. */
AVX512 static inline uint32_t plain_fours(const struct rk_queue *queue, uint32_t place,
					  uint32_t flags, uint32_t count,
					  struct packed_desc *descs, struct head *heads)
{
	struct shm *const first = packed_desc(queue, place);
	const __m512i wanted = _mm512_set1_epi16((int16_t)flags);
	const __m512i ids = _mm512_castsi128_si512(_mm_setr_epi32(3, 7, 11, 15));
	/* The flags, which are known, become a span of 1. */
	const __m128i to_head = _mm_set1_epi32((int32_t)((flags ^ 1) << 16));
	uint32_t n;

	for (n = 0; n + 4 <= count; n += 4) {
		const __m512i line = shm_load_pairs(shm_at(first, sizeof(*descs) * n));
		const __m128i ends = _mm512_castsi512_si128(_mm512_permutexvar_epi32(ids, line));

		if (_mm512_mask_cmpneq_epi16_mask(0x80808080, line, wanted))
			break;
		_mm512_storeu_si512(&descs[n], line);
		_mm_storeu_si128((__m128i *)&heads[n], _mm_xor_si128(ends, to_head));
	}
	return n;
}

/* Of packed_return_run(): chains of a descriptor each, up to the ring's end. */
AVX512 static inline uint32_t return_fours(const struct rk_queue *queue, const struct head *heads,
					   const uint32_t *lengths, uint32_t count,
					   struct pending *pending)
{
	const uint32_t place = queue->used_next;
	const uint32_t left = (place < queue->size ? 1 : 2) * queue->size - place;
	const uint32_t used = packed_used(queue, place);
	const __m128i to_end = _mm_set1_epi32((int32_t)((used ^ 1) << 16));
	const __m128i written = _mm_set1_epi32(DESC_WRITE << 16);
	const __m512i rests = _mm512_setr_epi32(0, 16, 0, 0, 1, 17, 0, 0, 2, 18, 0, 0, 3, 19, 0, 0);
	const __m512i four = _mm512_set1_epi64(4);
	__m512i places = _mm512_add_epi64(_mm512_set1_epi64(place),
					  _mm512_setr_epi64(0, 0, 0, 1, 0, 2, 0, 3));
	uint32_t n;

	if (count > left)
		count = left;
	for (n = 0; n + 4 <= count; n += 4) {
		const __m128i head = _mm_loadu_si128((const __m128i *)&heads[n]);
		const __m128i length = lengths ? _mm_loadu_si128((const __m128i *)&lengths[n])
					       : _mm_setzero_si128();
		__m128i end = _mm_xor_si128(head, to_end);
		__m512i made;

		if (_mm_mask_cmpneq_epi16_mask(0xaa, head, _mm_set1_epi16(1)))
			break;
		end = _mm_mask_or_epi32(end, _mm_test_epi32_mask(length, length), end, written);
		made = _mm512_permutex2var_epi32(_mm512_castsi128_si512(length), rests,
						 _mm512_castsi128_si512(end));
		_mm512_storeu_si512(&pending[n], _mm512_mask_mov_epi64(made, 0xaa, places));
		places = _mm512_add_epi64(places, four);
	}
	return n;
}

#endif
#endif
