/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The null port as a VF that reads VM1's memory: a descriptor of its ring for each frame, which stays in VM1's
 * buffer until that descriptor is seen done. The model is done at once, and no DMA moves the ring's lines.
 */
#include <stdio.h>

#include "stage_port.h"

struct rk_port *__wrap_port_null_open(const struct rk_port_config *config, char *error,
				      size_t error_bytes);

struct rk_port *__wrap_port_null_open(const struct rk_port_config *config, char *error,
				      size_t error_bytes)
{
	struct rk_port *port = stage_port_open("vf-held", config->frame_bytes, NULL);

	if (!port)
		snprintf(error, error_bytes, "out of memory");
	return port;
}
