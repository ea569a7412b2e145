/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A window's file may shrink under the mapping (its owner is not us), and the next access is a SIGBUS.
 * The handler puts anonymous memory in the window's place, so that the access ends and the loop can
 * quarantine the channel. Everything here is async-signal-safe: a fixed table and mmap().
 */
#include "ringk.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#define WINDOWS_MAX 1024u

struct window {
	uintptr_t base; /* 0: free */
	uint64_t length;
	uint32_t *fault;
};

static struct window windows[WINDOWS_MAX];
static struct sigaction former;

static bool replace(uintptr_t address)
{
	for (uint32_t i = 0; i < WINDOWS_MAX; i++) {
		struct window *window = &windows[i];
		uintptr_t base = __atomic_load_n(&window->base, __ATOMIC_ACQUIRE);

		if (base == 0 || address - base >= window->length)
			continue;
		if (mmap((void *)base, window->length, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
			 0) == MAP_FAILED)
			return false;
		__atomic_store_n(window->fault, 1, __ATOMIC_RELEASE);
		return true;
	}
	return false;
}

static void on_bus_error(int signal, siginfo_t *info, void *context)
{
	int error = errno;

	if (replace((uintptr_t)info->si_addr)) {
		errno = error;
		return;
	}
	/* Not ours: what was there before decides, and by default that is the end of the process. */
	if (former.sa_flags & SA_SIGINFO && former.sa_sigaction) {
		former.sa_sigaction(signal, info, context);
		return;
	}
	sigaction(SIGBUS, &former, NULL);
}

int rk_guard_install(void)
{
	static bool installed;
	struct sigaction action;

	if (installed)
		return 0;
	memset(&action, 0, sizeof(action));
	action.sa_sigaction = on_bus_error;
	action.sa_flags = SA_SIGINFO | SA_NODEFER;
	sigemptyset(&action.sa_mask);
	if (sigaction(SIGBUS, &action, &former) < 0)
		return -1;
	installed = true;
	return 0;
}

int rk_guard_add(void *base, uint64_t length, uint32_t *fault)
{
	for (uint32_t i = 0; i < WINDOWS_MAX; i++) {
		struct window *window = &windows[i];

		if (__atomic_load_n(&window->base, __ATOMIC_RELAXED))
			continue;
		window->length = length;
		window->fault = fault;
		__atomic_store_n(&window->base, (uintptr_t)base, __ATOMIC_RELEASE);
		return 0;
	}
	errno = ENOSPC;
	return -1;
}

void rk_guard_remove(void *base)
{
	for (uint32_t i = 0; i < WINDOWS_MAX; i++)
		if (windows[i].base == (uintptr_t)base)
			__atomic_store_n(&windows[i].base, 0, __ATOMIC_RELEASE);
}
