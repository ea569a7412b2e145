/* SPDX-License-Identifier: BSD-3-Clause */
/* direct.c for packed rings: see layout.h. */
#define LAYOUT_PACKED true
#include "direct.c"
