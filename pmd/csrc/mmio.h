/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Device registers and the memory that a device reads and writes by DMA.
 *
 * A register is accessed by exactly one access of its width. On x86-64 memory is ordered with stores to
 * uncached registers, and DMA writes are seen in order, so that only the compiler has to be held; on
 * AArch64 the outer shareable barriers do it (the device is no part of the inner domain).
 */
#ifndef MMIO_H
#define MMIO_H

#include <stdint.h>

static inline void mmio_write32(uint64_t address, uint32_t value)
{
	*(volatile uint32_t *)(uintptr_t)address = value;
}

static inline void mmio_write16(uint64_t address, uint16_t value)
{
	*(volatile uint16_t *)(uintptr_t)address = value;
}

/* What was written to memory before is there when the device sees the register written next. */
static inline void dma_publish(void)
{
#if defined(__aarch64__)
	__asm__ volatile("dmb oshst" ::: "memory");
#else
	__asm__ volatile("" ::: "memory");
#endif
}

/* What is read from memory next is not older than what was read before: the device's "done". */
static inline void dma_consume(void)
{
#if defined(__aarch64__)
	__asm__ volatile("dmb oshld" ::: "memory");
#else
	__asm__ volatile("" ::: "memory");
#endif
}

/* What was written to memory before is there for the device when the next read happens: on x86-64, too, only
 * a full fence keeps a read behind a write. */
static inline void dma_fence(void)
{
#if defined(__aarch64__)
	__asm__ volatile("dmb osh" ::: "memory");
#else
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/* Descriptors are little endian, as is every machine this is built for. */
static inline uint16_t dma_read16(const void *p)
{
	return *(const volatile uint16_t *)p;
}

static inline uint32_t dma_read32(const void *p)
{
	return *(const volatile uint32_t *)p;
}

static inline void dma_write16(void *p, uint16_t value)
{
	*(volatile uint16_t *)p = value;
}

static inline void dma_write32(void *p, uint32_t value)
{
	*(volatile uint32_t *)p = value;
}

static inline void dma_write64(void *p, uint64_t value)
{
	*(volatile uint64_t *)p = value;
}

#endif
