/* SPDX-License-Identifier: BSD-3-Clause */
/* dequeue.c for packed rings: see layout.h. */
#define LAYOUT_PACKED true
#include "dequeue.c"
