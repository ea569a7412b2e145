/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The only door to memory that VM1 can change under us.
 *
 * struct shm is never defined, so nothing else can dereference such a pointer; tests/test_tidy.py looks
 * for casts out of it. Each accessor reads or writes once: what it returns is private. Ordering is by
 * acquire and release on the indices (2.7.13); the one full fence is shm_fence(). Fields are little
 * endian, as is every machine this is built for.
 */
#ifndef SHM_H
#define SHM_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "virtio 1.x rings are little endian; byte swapping accessors are not written"
#endif

struct shm;

static inline struct shm *shm_at(struct shm *base, uint64_t offset)
{
	return (struct shm *)((uintptr_t)base + offset);
}

/*
 * A window may be mapped write-combining, and then x86 orders neither loads nor stores by itself
 * (Intel SDM, volume 3, "Methods of Caching Available"): what acquire and release get for nothing
 * elsewhere takes an instruction. Both together cost some 100 cycles, so only where it is so mapped.
 */
static inline void shm_order_loads(bool combining)
{
#if defined(__x86_64__)
	if (combining)
		__builtin_ia32_lfence();
#else
	(void)combining;
#endif
}

static inline void shm_order_stores(bool combining)
{
#if defined(__x86_64__)
	if (combining)
		__builtin_ia32_sfence();
#else
	(void)combining;
#endif
}

static inline uint16_t shm_load16(struct shm *p)
{
	return __atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_RELAXED);
}

/* Pairs with the driver's barrier before it moves avail.idx: entries are read after it (2.7.13.1). */
static inline uint16_t shm_load16_acquire(struct shm *p, bool combining)
{
	uint16_t value = __atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_ACQUIRE);

	shm_order_loads(combining);
	return value;
}

static inline uint64_t shm_load64(struct shm *p)
{
	return __atomic_load_n((const uint64_t *)(const void *)p, __ATOMIC_RELAXED);
}

/* A packed ring's descriptor but for its address: flags are written last, so they vouch for the rest. */
static inline uint64_t shm_load64_acquire(struct shm *p, bool combining)
{
	uint64_t value = __atomic_load_n((const uint64_t *)(const void *)p, __ATOMIC_ACQUIRE);

	shm_order_loads(combining);
	return value;
}

static inline uint32_t shm_load32(struct shm *p)
{
	return __atomic_load_n((const uint32_t *)(const void *)p, __ATOMIC_RELAXED);
}

/* After everything written before, for a reader; write-combining takes shm_order_stores() as well. */
static inline void shm_store64_release(struct shm *p, uint64_t value)
{
	__atomic_store_n((uint64_t *)(void *)p, value, __ATOMIC_RELEASE);
}

static inline void shm_store64(struct shm *p, uint64_t value)
{
	__atomic_store_n((uint64_t *)(void *)p, value, __ATOMIC_RELAXED);
}

static inline void shm_store16(struct shm *p, uint16_t value)
{
	__atomic_store_n((uint16_t *)(void *)p, value, __ATOMIC_RELAXED);
}

/* Everything written before is there when the driver sees the new used.idx (2.7.8.2). */
static inline void shm_store16_release(struct shm *p, uint16_t value, bool combining)
{
	shm_order_stores(combining);
	__atomic_store_n((uint16_t *)(void *)p, value, __ATOMIC_RELEASE);
}

static inline void shm_copy_in(void *to, const struct shm *from, size_t bytes)
{
	memcpy(to, (const void *)from, bytes);
}

static inline void shm_copy_out(struct shm *to, const void *from, size_t bytes)
{
	memcpy((void *)to, from, bytes);
}

/* One aligned 64-byte line into 16-byte aligned private memory, by the loads that a write-combining
 * mapping answers with a single transfer (movntdqa: Intel SDM, volume 1, "Streaming Load Hint Instruction"). */
static inline void shm_stream_line(void *to, const struct shm *from)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("sse4.1")) {
		__asm__ volatile("movntdqa (%1), %%xmm0\n\t"
				 "movntdqa 16(%1), %%xmm1\n\t"
				 "movntdqa 32(%1), %%xmm2\n\t"
				 "movntdqa 48(%1), %%xmm3\n\t"
				 "movdqa %%xmm0, (%0)\n\t"
				 "movdqa %%xmm1, 16(%0)\n\t"
				 "movdqa %%xmm2, 32(%0)\n\t"
				 "movdqa %%xmm3, 48(%0)"
				 :
				 : "r"(to), "r"(from)
				 : "xmm0", "xmm1", "xmm2", "xmm3", "memory");
		return;
	}
#endif
	shm_copy_in(to, from, 64);
}

#if defined(__x86_64__)
/*
 * Four pairs of words at once, as packed rings have descriptors. No manual promises that a vector's aligned words
 * are each read in one piece, but so does every processor that has these, and drivers count on it.
 */
typedef long long shm_pairs __attribute__((vector_size(64)));

/* The second words, and after them the first: as shm_load64_acquire() of those and then shm_load64(). Not combining. */
static inline __attribute__((target("avx512f"))) shm_pairs shm_load_pairs(struct shm *p)
{
	shm_pairs pairs;

	__asm__ volatile("vmovdqu64 (%1), %0" : "=v"(pairs) : "r"(p) : "memory");
	__asm__ volatile("vmovdqu64 (%1), %0%{%2%}"
			 : "+v"(pairs)
			 : "r"(p), "Yk"((uint8_t)0x55)
			 : "memory");
	return pairs;
}
#endif

/*
 * Frames are short: up to SHM_SHORT bytes no call is made. No byte past either end is touched, so the
 * last ones may be copied twice. From VM1 to VM1 what is read and what is written may overlap: then the
 * bytes are its own affair, but the call must be one that allows it.
 */
#define SHM_SHORT 256u

static inline void copy_short(uint8_t *to, const uint8_t *from, size_t bytes)
{
	if (bytes >= 64) {
		for (size_t done = 0; done + 64 <= bytes; done += 64)
			__builtin_memcpy(to + done, from + done, 64);
		if (bytes % 64 == 0)
			return;
		to += bytes - 64;
		from += bytes - 64;
		__builtin_memcpy(to, from, 64);
	} else if (bytes >= 32) {
		__builtin_memcpy(to, from, 32);
		__builtin_memcpy(to + bytes - 32, from + bytes - 32, 32);
	} else if (bytes >= 16) {
		__builtin_memcpy(to, from, 16);
		__builtin_memcpy(to + bytes - 16, from + bytes - 16, 16);
	} else {
		memmove(to, from, bytes);
	}
}

/*
 * Long ones come in by pieces. From 8 KiB on glibc's memcpy() is `rep movsb`, which takes 1.6 times as long
 * where the two ends are not aligned alike (behind a virtio-net header they are not), and a compiler that
 * knows how long a piece is at most makes the same of it. Out of a private frame, in the cache, it does well.
 */
#define SHM_LONG 8192u
#define SHM_PIECE 4096u

static __attribute__((noinline, unused)) void copy_long(uint8_t *to, const uint8_t *from, size_t bytes)
{
	for (size_t part; bytes; to += part, from += part, bytes -= part) {
		part = bytes < SHM_PIECE ? bytes : SHM_PIECE;
		__asm__("" : "+r"(part));
		memcpy(to, from, part);
	}
}

static inline void shm_copy_frame_in(uint8_t *to, const struct shm *from, size_t bytes)
{
	if (bytes <= SHM_SHORT)
		copy_short(to, (const void *)from, bytes);
	else if (bytes < SHM_LONG)
		memcpy(to, (const void *)from, bytes);
	else
		copy_long(to, (const void *)from, bytes);
}

static inline void shm_copy_frame_out(struct shm *to, const uint8_t *from, size_t bytes)
{
	if (bytes <= SHM_SHORT)
		copy_short((void *)to, from, bytes);
	else
		memmove((void *)to, from, bytes);
}

#define SHM_LINE 64u

static inline void shm_prefetch(const struct shm *p)
{
	__builtin_prefetch((const void *)p);
}

/* For writing: another core has the line, and would otherwise be asked for it store by store. */
static inline void shm_prefetch_write(struct shm *p)
{
#if defined(__x86_64__)
	__asm__ volatile("prefetchw (%0)" : : "r"(p));
#else
	__builtin_prefetch((const void *)p, 1);
#endif
}

/* Out of every cache; of no effect where isa_flushes() says no. */
static inline void shm_flush(const struct shm *p)
{
#if defined(__x86_64__)
	__asm__ volatile("clflushopt (%0)" : : "r"(p) : "memory");
#else
	(void)p;
#endif
}

/* The first two lines of bytes at p, as far as they reach; what follows the processor finds by itself. */
static inline void shm_prefetch_frame(const struct shm *p, size_t bytes)
{
	shm_prefetch(p);
	if (((uintptr_t)p & (SHM_LINE - 1)) + bytes > SHM_LINE)
		shm_prefetch((const struct shm *)((uintptr_t)p + SHM_LINE));
}

static inline void shm_prefetch_frame_write(struct shm *p, size_t bytes)
{
	shm_prefetch_write(p);
	if (((uintptr_t)p & (SHM_LINE - 1)) + bytes > SHM_LINE)
		shm_prefetch_write(shm_at(p, SHM_LINE));
}

/* Our store (used.idx) before our load (used_event, avail.flags): only a full fence orders these. */
static inline void shm_fence(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

#endif
