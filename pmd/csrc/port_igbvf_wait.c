/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The igbvf port interrupts who sleeps. A cause that comes while its vector is off stays, and is sent when the
 * vector is turned on (Intel 82576EB datasheet, 7.3 and 8.8): so arming has no need to look at the ring first, nor
 * may it clear the cause. What was received awake costs one wake-up more for that.
 */
#define _GNU_SOURCE
#include "igbvf.h"

#define RECEIVE_VECTOR (1u << 0)

uint32_t igbvf_arm(struct rk_port *port)
{
	struct igbvf_port *vf = (struct igbvf_port *)port;

	if (vf->port.wake_fd != RK_WAKE_POLL)
		mmio_write32(vf->interrupts_on, RECEIVE_VECTOR);
	return RK_ARMED;
}

/* The vector turns itself off where its PF has set GPIE.EIAME, and only once it has been sent. */
void igbvf_disarm(struct rk_port *port)
{
	struct igbvf_port *vf = (struct igbvf_port *)port;

	if (vf->port.wake_fd != RK_WAKE_POLL)
		mmio_write32(vf->interrupts_off, RECEIVE_VECTOR);
}
