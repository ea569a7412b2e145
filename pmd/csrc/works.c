/* SPDX-License-Identifier: BSD-3-Clause */
#include "works.h"

#include "queue.h"

/* The ring, if it may be touched. */
static struct rk_queue *sound(struct rk_queue *queue)
{
	return queue && queue->fault == RK_FAULT_NONE ? queue : NULL;
}

void works_coalesce(struct rk_work *works, uint32_t count, uint64_t cycles)
{
	for (uint32_t i = 0; i < count; i++) {
		if (works[i].tx)
			works[i].tx->coalesce = cycles;
		if (works[i].rx)
			works[i].rx->coalesce = cycles;
	}
}

void works_call_due(struct rk_work *works, uint32_t count, uint64_t now)
{
	for (uint32_t i = 0; i < count; i++) {
		struct rk_queue *rings[] = {sound(works[i].tx), sound(works[i].rx)};

		for (uint32_t k = 0; k < 2; k++)
			if (rings[k] && rings[k]->call_due && rings[k]->call_due <= now)
				queue_call_now(rings[k]);
	}
}

/* The receive ring, if its kicks are waited for: its buffers are left alone while it is not enabled, or has no
 * frames but those that another ring's kick tells of. */
static struct rk_queue *awaited(const struct rk_work *work)
{
	const bool waits = work->port->ops->rx && sound(work->rx);

	return waits && work->rx->flags & RK_RING_ENABLED ? work->rx : NULL;
}

/* Whether VM1 has room for a frame that the port has: else its kick is what matters. */
static bool takes(const struct rk_work *work)
{
	const struct rk_queue *rx = awaited(work);

	return rx && (rx->receives == RECEIVES_DIRECT || !rx->empty);
}

uint32_t works_arm(struct rk_work *works, uint32_t count)
{
	uint32_t found = RK_ARMED;

	for (uint32_t i = 0; i < count; i++) {
		struct rk_queue *rings[] = {sound(works[i].tx), awaited(&works[i])};
		struct rk_port *port = works[i].port;

		for (uint32_t k = 0; k < 2; k++)
			if (rings[k] && queue_arm(rings[k]))
				found |= RK_NEWS;
		if (port->ops->arm)
			found |= port->ops->arm(port) & (takes(&works[i]) ? ~0u : ~RK_NEWS);
	}
	return found;
}

void works_disarm(struct rk_work *works, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct rk_queue *rings[] = {sound(works[i].tx), awaited(&works[i])};
		struct rk_port *port = works[i].port;

		for (uint32_t k = 0; k < 2; k++)
			if (rings[k])
				queue_disarm(rings[k]);
		if (port->ops->disarm)
			port->ops->disarm(port);
	}
}

bool works_wait(const struct rk_work *works, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		const struct rk_queue *tx = sound(works[i].tx);
		const struct rk_queue *rx = sound(works[i].rx);

		if ((tx && (tx->flying || tx->waiting)) || (rx && rx->waiting))
			return true;
	}
	return false;
}
