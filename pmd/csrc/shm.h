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
 * elsewhere takes an instruction. Where it is cached, both together cost some 100 cycles a burst.
 */
static inline void shm_order_loads(void)
{
#if defined(__x86_64__)
	__builtin_ia32_lfence();
#endif
}

static inline void shm_order_stores(void)
{
#if defined(__x86_64__)
	__builtin_ia32_sfence();
#endif
}

static inline uint16_t shm_load16(struct shm *p)
{
	return __atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_RELAXED);
}

/* Pairs with the driver's barrier before it moves avail.idx: entries are read after it (2.7.13.1). */
static inline uint16_t shm_load16_acquire(struct shm *p)
{
	uint16_t value = __atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_ACQUIRE);

	shm_order_loads();
	return value;
}

static inline uint64_t shm_load64(struct shm *p)
{
	return __atomic_load_n((const uint64_t *)(const void *)p, __ATOMIC_RELAXED);
}

static inline void shm_store16(struct shm *p, uint16_t value)
{
	__atomic_store_n((uint16_t *)(void *)p, value, __ATOMIC_RELAXED);
}

/* Everything written before is there when the driver sees the new used.idx (2.7.8.2). */
static inline void shm_store16_release(struct shm *p, uint16_t value)
{
	shm_order_stores();
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

static inline void shm_prefetch(const struct shm *p)
{
	__builtin_prefetch((const void *)p);
}

/* Our store (used.idx) before our load (used_event, avail.flags): only a full fence orders these. */
static inline void shm_fence(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

#endif
