/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef CALL_H
#define CALL_H

/* Adds one to the eventfd of another process, and never blocks whatever that process does with it. */
void call_eventfd(int fd);

#endif
