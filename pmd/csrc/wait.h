/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sleeping until somebody wants the loop: VM1's kicks, frames at a port, a change of the device, stop.
 *
 * Descriptors are watched by their edges and never read: VM1 shares its kick eventfd with us, so a
 * read could block or be stolen, and an eventfd tells of each write whether it was read or not. An
 * edge that comes while nobody sleeps ends the next sleep at once, so none is lost.
 */
#ifndef WAIT_H
#define WAIT_H

#include <stdbool.h>
#include <stdint.h>

struct waiter {
	int epoll_fd;
	int stop_fd;  /* the loop's own eventfd */
};

/* 0, or -1 with errno. */
int waiter_open(struct waiter *waiter);
void waiter_close(struct waiter *waiter);
/* Forgets all descriptors but the stop eventfd. 0, or -1 with errno: all stay. */
int waiter_clear(struct waiter *waiter);
/* Watches fd as well; a second time is fine, and so is one that cannot be watched: it tells nothing. */
bool waiter_watch(struct waiter *waiter, int fd);
/* Sleeps until an edge, for at most ns; true if there was one. */
bool waiter_sleep(struct waiter *waiter, uint64_t ns);
/* From any thread: ends this sleep, or the next. */
void waiter_wake(const struct waiter *waiter);

/* Between two looks at memory that nobody has written yet. */
static inline void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

#endif
