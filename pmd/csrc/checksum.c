/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sums of 16-bit words are the same whether they are added as such or as 32-bit words whose halves are added at
 * the end, and in whatever byte order (RFC 1071, 2). So 32-bit words go into 64-bit sums, which cannot overflow.
 */
#include "checksum.h"

#include "isa.h"
#include "ringk.h"

/* The last count < 4 bytes: as a word, or two, padded with zeroes. */
static uint64_t sum_tail(const uint8_t *bytes, size_t count)
{
	uint32_t word = 0;

	memcpy(&word, bytes, count);
	return word;
}

static uint64_t sum_scalar(const uint8_t *bytes, size_t count)
{
	uint64_t sum = 0;

	for (; count >= 4; bytes += 4, count -= 4) {
		uint32_t word;

		memcpy(&word, bytes, sizeof(word));
		sum += word;
	}
	return sum + sum_tail(bytes, count);
}

#if defined(__x86_64__)
#include <immintrin.h>

/* Four 64-bit sums: of the even 32-bit words and of the odd ones of 32 bytes each. */
AVX2 static uint64_t sum_avx2(const uint8_t *bytes, size_t count)
{
	const __m256i low = _mm256_set1_epi64x(0xffffffff);
	__m256i even = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
	uint64_t lanes[4];

	for (; count >= 64; bytes += 64, count -= 64) {
		__m256i first = _mm256_loadu_si256((const __m256i *)bytes);
		__m256i second = _mm256_loadu_si256((const __m256i *)(bytes + 32));

		even = _mm256_add_epi64(even, _mm256_and_si256(first, low));
		odd = _mm256_add_epi64(odd, _mm256_srli_epi64(first, 32));
		even = _mm256_add_epi64(even, _mm256_and_si256(second, low));
		odd = _mm256_add_epi64(odd, _mm256_srli_epi64(second, 32));
	}
	_mm256_storeu_si256((__m256i *)lanes, _mm256_add_epi64(even, odd));
	return lanes[0] + lanes[1] + lanes[2] + lanes[3] + sum_scalar(bytes, count);
}

/* The same of 64 bytes; what is missing of the last is not read, and zeroes. */
AVX512 static uint64_t sum_avx512(const uint8_t *bytes, size_t count)
{
	const __m512i low = _mm512_set1_epi64(0xffffffff);
	__m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512(), words;

	for (; count >= 64; bytes += 64, count -= 64) {
		words = _mm512_loadu_si512(bytes);
		even = _mm512_add_epi64(even, _mm512_and_si512(words, low));
		odd = _mm512_add_epi64(odd, _mm512_srli_epi64(words, 32));
	}
	words = _mm512_maskz_loadu_epi8((1ull << count) - 1, bytes);
	even = _mm512_add_epi64(even, _mm512_and_si512(words, low));
	odd = _mm512_add_epi64(odd, _mm512_srli_epi64(words, 32));
	return (uint64_t)_mm512_reduce_add_epi64(_mm512_add_epi64(even, odd));
}

uint64_t checksum_sum(const uint8_t *bytes, size_t count)
{
	if (isa() == ISA_AVX512)
		return sum_avx512(bytes, count);
	if (count >= 128 && isa() == ISA_AVX2)
		return sum_avx2(bytes, count);
	return sum_scalar(bytes, count);
}
#else
uint64_t checksum_sum(const uint8_t *bytes, size_t count)
{
	return sum_scalar(bytes, count);
}
#endif

uint16_t checksum_of(uint64_t sum)
{
	uint16_t folded;

	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	folded = (uint16_t)~sum;
	return folded ? folded : 0xffff;
}
