/* SPDX-License-Identifier: BSD-3-Clause */
/* Edges by epoll: wait.h says why. */
#define _GNU_SOURCE
#include "wait.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EDGES 64

int waiter_open(struct waiter *waiter)
{
	waiter->epoll_fd = -1;
	waiter->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (waiter->stop_fd >= 0 && waiter_clear(waiter) == 0)
		return 0;
	waiter_close(waiter);
	return -1;
}

void waiter_close(struct waiter *waiter)
{
	if (waiter->epoll_fd >= 0)
		close(waiter->epoll_fd);
	if (waiter->stop_fd >= 0)
		close(waiter->stop_fd);
	waiter->epoll_fd = -1;
	waiter->stop_fd = -1;
}

int waiter_clear(struct waiter *waiter)
{
	int made = epoll_create1(EPOLL_CLOEXEC);

	if (made < 0)
		return -1;
	if (waiter->epoll_fd >= 0)
		close(waiter->epoll_fd);
	waiter->epoll_fd = made;
	return waiter_watch(waiter, waiter->stop_fd) ? 0 : -1;
}

bool waiter_watch(struct waiter *waiter, int fd)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET};

	return epoll_ctl(waiter->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 || errno == EEXIST;
}

bool waiter_sleep(struct waiter *waiter, uint64_t ns)
{
	struct timespec timeout = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
	struct epoll_event events[EDGES];
	long found = -1;

#ifdef SYS_epoll_pwait2
	found = syscall(SYS_epoll_pwait2, waiter->epoll_fd, events, EDGES, &timeout, NULL, 0);
	if (found >= 0 || errno != ENOSYS)
		return found > 0;
#endif
	/* Before Linux 5.11: whole milliseconds. */
	found = epoll_wait(waiter->epoll_fd, events, EDGES, (int)((ns + 999999u) / 1000000u));
	return found > 0;
}

void waiter_wake(const struct waiter *waiter)
{
	const uint64_t one = 1;
	ssize_t written = write(waiter->stop_fd, &one, sizeof(one));

	(void)written; /* full: an edge is there already */
}
