/* SPDX-License-Identifier: BSD-3-Clause */
/* enqueue.c for packed rings: see layout.h. */
#define LAYOUT_PACKED true
#include "enqueue.c"
