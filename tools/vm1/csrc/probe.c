/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where this thread's CPU and the back-end's stand to each other, and whether they are theirs alone.
 *
 * A host moves virtual CPUs about. How far apart two are is told by a cache line thrown to and fro
 * between this thread and a helper on the back-end's CPU; whether the host gives a core's other half to
 * somebody is told by how long a run of additions takes. The helper is of real-time priority, because the
 * back-end never leaves its CPU by itself, and sleeps but for the short time of a probe.
 */
#define _GNU_SOURCE /* the CPU of a thread: no standard has it */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "clock.h"
#include "vm1.h"

#define BATCHES 16u
#define THROWS 32u          /* to and fro, of one batch */
#define ALU_ROUNDS 2000u
#define ALU_BATCHES 8u
#define PATIENCE_CYCLES (1ull << 25) /* about 10 ms: the helper does not get its CPU */
#define GIVEN_UP UINT32_MAX

struct vm1_probe {
	_Alignas(128) _Atomic uint32_t ball; /* odd: the helper is to throw it back; 0 between probes */
	_Alignas(128) sem_t wanted;
	_Atomic bool asleep, ends;
	_Atomic uint64_t peer_alu; /* written by the helper before its last throw */
	pthread_t thread;
};

/* Four chains of additions: as much as a core's units can do, so that half a core takes longer. */
static uint64_t alu_batch(void)
{
	uint64_t a = 1, b = 2, c = 3, d = 4, begin = tsc();

	for (uint32_t round = 0; round < ALU_ROUNDS; round++)
		__asm__ volatile("add $1, %0\n\tadd $1, %1\n\tadd $1, %2\n\tadd $1, %3\n\t"
				 "add $1, %0\n\tadd $1, %1\n\tadd $1, %2\n\tadd $1, %3"
				 : "+r"(a), "+r"(b), "+r"(c), "+r"(d));
	return tsc() - begin;
}

/* The best of some batches, in thousandths of a cycle a round: an interrupt spoils one only. */
static uint64_t alu_milli(void)
{
	uint64_t best = UINT64_MAX;

	for (uint32_t batch = 0; batch < ALU_BATCHES; batch++) {
		uint64_t cycles = alu_batch();

		best = cycles < best ? cycles : best;
	}
	return best * 1000 / ALU_ROUNDS;
}

/* Waits for the ball to hold number; false where the other side gave up, or lets one wait too long. */
static bool wait_for(struct vm1_probe *probe, uint32_t number)
{
	uint64_t begin = tsc();

	for (;;) {
		uint32_t seen = atomic_load_explicit(&probe->ball, memory_order_acquire);

		if (seen == number)
			return true;
		if (seen == GIVEN_UP || tsc() - begin > PATIENCE_CYCLES)
			return false;
	}
}

static void throw(struct vm1_probe *probe, uint32_t number)
{
	atomic_store_explicit(&probe->ball, number, memory_order_release);
}

static void help(struct vm1_probe *probe)
{
	for (uint32_t number = 1; number < 2 * BATCHES * THROWS; number += 2) {
		if (!wait_for(probe, number))
			return;
		throw(probe, number + 1);
	}
	/* Both cores at once: their other halves may be each other. */
	atomic_store_explicit(&probe->peer_alu, alu_milli(), memory_order_relaxed);
	if (wait_for(probe, 2 * BATCHES * THROWS + 1))
		throw(probe, 2 * BATCHES * THROWS + 2);
}

static void *helper(void *argument)
{
	struct vm1_probe *probe = argument;

	for (;;) {
		atomic_store_explicit(&probe->asleep, true, memory_order_release);
		while (sem_wait(&probe->wanted))
			continue;
		if (atomic_load_explicit(&probe->ends, memory_order_relaxed))
			return NULL;
		help(probe);
	}
}

static int start_helper(struct vm1_probe *probe, uint32_t cpu)
{
	const struct sched_param priority = { .sched_priority = 1 };
	pthread_attr_t attributes;
	cpu_set_t cpus;
	int error;

	if (cpu >= CPU_SETSIZE)
		return EINVAL;
	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	error = pthread_attr_init(&attributes);
	if (error)
		return error;
	error = pthread_attr_setaffinity_np(&attributes, sizeof(cpus), &cpus);
	if (!error)
		error = pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
	if (!error)
		error = pthread_attr_setschedpolicy(&attributes, SCHED_FIFO);
	if (!error)
		error = pthread_attr_setschedparam(&attributes, &priority);
	if (!error)
		error = pthread_create(&probe->thread, &attributes, helper, probe);
	pthread_attr_destroy(&attributes);
	return error;
}

struct vm1_probe *vm1_probe_new(uint32_t peer_cpu)
{
	struct vm1_probe *probe = aligned_alloc(128, sizeof(*probe));
	int error;

	if (!probe)
		return NULL;
	*probe = (struct vm1_probe){ .ball = 0 };
	error = sem_init(&probe->wanted, 0, 0) ? errno : 0;
	if (!error) {
		error = start_helper(probe, peer_cpu);
		if (error)
			sem_destroy(&probe->wanted);
	}
	if (error) {
		free(probe);
		errno = error;
		return NULL;
	}
	return probe;
}

void vm1_probe_free(struct vm1_probe *probe)
{
	atomic_store_explicit(&probe->ends, true, memory_order_relaxed);
	sem_post(&probe->wanted);
	pthread_join(probe->thread, NULL);
	sem_destroy(&probe->wanted);
	free(probe);
}

/* The best batch, in cycles one way; 0: the helper did not play. */
static uint64_t ping_pong(struct vm1_probe *probe)
{
	uint64_t best = UINT64_MAX;
	uint32_t number = 1;

	for (uint32_t batch = 0; batch < BATCHES; batch++) {
		uint64_t begin = tsc();

		for (uint32_t turn = 0; turn < THROWS; turn++, number += 2) {
			throw(probe, number);
			if (!wait_for(probe, number + 1))
				return 0;
		}
		begin = tsc() - begin;
		best = begin < best ? begin : best;
	}
	return best * 1000 / (2 * THROWS);
}

int vm1_probe_run(struct vm1_probe *probe, struct vm1_probe_result *result)
{
	const uint32_t last = 2 * BATCHES * THROWS + 1;
	bool played;

	*result = (struct vm1_probe_result){ 0 };
	if (!atomic_load_explicit(&probe->asleep, memory_order_acquire))
		return EBUSY;
	atomic_store_explicit(&probe->asleep, false, memory_order_relaxed);
	atomic_store_explicit(&probe->ball, 0, memory_order_relaxed);
	sem_post(&probe->wanted);
	result->one_way_milli = ping_pong(probe);
	played = result->one_way_milli != 0;
	if (played) {
		result->own_alu_milli = alu_milli();
		throw(probe, last);
		played = wait_for(probe, last + 1);
		result->peer_alu_milli =
			atomic_load_explicit(&probe->peer_alu, memory_order_relaxed);
	}
	if (played)
		return 0;
	atomic_store_explicit(&probe->ball, GIVEN_UP, memory_order_release);
	return EBUSY;
}
