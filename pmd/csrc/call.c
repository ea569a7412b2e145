/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Calling through an eventfd that VM1 shares with us, and may have made blocking and filled: a write
 * would then hold the lcore, with every ring on it, for as long as VM1 likes. O_NONBLOCK does not help,
 * because VM1 can take it away at any time, and eventfds know no RWF_NOWAIT for writing.
 *
 * So the kernel does it: an asynchronous request that completes at once and names the eventfd to be
 * signalled (IOCB_FLAG_RESFD: io_submit(2)), as it signals one for any device, without blocking. The
 * request is to poll the eventfd itself, which is always readable or writable.
 */
#define _GNU_SOURCE
#include "call.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REQUESTS 64u

/* The process's context, made at the first call; 0: not yet, or not to be had. */
static aio_context_t the_context;

static aio_context_t context_get(void)
{
	aio_context_t context = __atomic_load_n(&the_context, __ATOMIC_ACQUIRE);
	aio_context_t made = 0;

	if (context)
		return context;
	if (syscall(SYS_io_setup, REQUESTS, &made) != 0)
		return 0;
	if (__atomic_compare_exchange_n(&the_context, &context, made, 0, __ATOMIC_ACQ_REL,
					__ATOMIC_ACQUIRE))
		return made;
	syscall(SYS_io_destroy, made); /* another thread was first */
	return context;
}

/* Takes completed requests off: without this, no more of them could be submitted. */
static void reap(aio_context_t context)
{
	struct timespec now = {0, 0};
	struct io_event events[REQUESTS];

	syscall(SYS_io_getevents, context, 0, REQUESTS, events, &now);
}

void call_eventfd(int fd)
{
	const uint64_t one = 1;
	const aio_context_t context = context_get();
	struct iocb request = {
		.aio_lio_opcode = IOCB_CMD_POLL,
		.aio_fildes = (uint32_t)fd,
		.aio_buf = POLLIN | POLLOUT,
		.aio_flags = IOCB_FLAG_RESFD,
		.aio_resfd = (uint32_t)fd,
	};
	struct iocb *requests = &request;
	ssize_t written;

	for (int attempt = 0; context && attempt < 2; attempt++) {
		if (syscall(SYS_io_submit, context, 1, &requests) == 1)
			return;
		if (errno != EAGAIN)
			break;
		reap(context);
	}
	/* Not to be had here: as good as it gets. A full eventfd has a call pending already. */
	fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK);
	written = write(fd, &one, sizeof(one));
	(void)written;
}
