/* SPDX-License-Identifier: BSD-3-Clause */
/* suited.c for packed rings: see layout.h. */
#define LAYOUT_PACKED true
#include "suited.c"
