/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The patch port: what VM1 sends is copied, once, from its memory into the receive buffers of the VM1 at the
 * other end. The loop port: the same, and the other end is this one.
 *
 * The work at the other end is found when a loop is given its works, so it is one of the same loop, and its
 * rings are this thread's; it is forgotten when the loop is given others. A patch waits for nobody: what
 * the other end has no buffer for is dropped. A loop waits, for its VM1 stops nobody but itself.
 */
#define _GNU_SOURCE
#include "patch.h"
#include "port.h"
#include "turn.h"

#include <stdlib.h>

struct patch_port {
	struct rk_port port;
	char *name, *end;       /* of the patch; which of its two ends. A loop has neither */
	struct rk_work *other;  /* whose VM1 receives; NULL: there is none */
};

static uint32_t patch_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n);
static void patch_close(struct rk_port *port);

static const struct rk_port_ops patch_ops = {
	.kind = "patch",
	.tx = patch_tx,
	.close = patch_close,
};

static const struct rk_port_ops loop_ops = {
	.kind = "loop",
	.tx = patch_tx,
	.close = patch_close,
};

/* Whether the ring at the other end has no buffer whose translation is known: as good as none. */
static bool is_full(const struct patch_port *patch)
{
	return patch->other && patch->other->rx->fault == RK_FAULT_MISSING;
}

/* The ring at the other end, if it may be touched. */
static struct rk_queue *receiver(const struct patch_port *patch)
{
	const struct rk_work *other = patch->other;

	if (!other || other->events || other->rx->fault != RK_FAULT_NONE)
		return NULL;
	return other->rx;
}

static uint32_t patch_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct patch_port *patch = (struct patch_port *)port;
	struct rk_queue *queue = receiver(patch);
	uint32_t done = 0;

	if (!queue && !is_full(patch))
		return port_drop(frames, n, RK_DROP_VF_DOWN);
	if (queue)
		done = enqueue_frames(queue, frames, n, port->flush);
	if (done == n || port->ops == &loop_ops)
		return done;
	/* The ring may have buffers that one turn must not look at: but then it is to get on. */
	if (done && queue->walked >= TURN_WALK_MAX)
		return done;
	return done + port_drop(&frames[done], n - done, RK_DROP_VF_FULL);
}

/* ---- who is at the other end ------------------------------------------------------------------ */

static struct patch_port *patch_of(const struct rk_work *work)
{
	const struct rk_port_ops *ops = work->port->ops;

	return ops == &patch_ops || ops == &loop_ops ? (struct patch_port *)work->port : NULL;
}

static bool receives(const struct rk_work *work)
{
	return work->rx && work->rx->flags & RK_RING_ENABLED;
}

static bool same_end(const struct patch_port *one, const struct patch_port *other)
{
	return strcmp(one->name, other->name) == 0 && strcmp(one->end, other->end) == 0;
}

static bool opposite(const struct patch_port *one, const struct patch_port *other)
{
	return strcmp(one->name, other->name) == 0 && strcmp(one->end, other->end) != 0;
}

/* The index-th of the works at the other end that receive, counted round and round; NULL if none does. */
static struct rk_work *work_opposite(const struct patch_port *patch, struct rk_work *works,
				     uint32_t count, uint32_t index)
{
	uint32_t found = 0;

	for (uint32_t i = 0; i < count; i++) {
		const struct patch_port *other = patch_of(&works[i]);

		if (other && other->name && receives(&works[i]) && opposite(patch, other) &&
		    found++ == index)
			return &works[i];
	}
	return found ? work_opposite(patch, works, count, index % found) : NULL;
}

/* How many works before works[at] are at the same end. */
static uint32_t pair_of(const struct patch_port *patch, const struct rk_work *works, uint32_t at)
{
	uint32_t before = 0;

	for (uint32_t i = 0; i < at; i++) {
		const struct patch_port *one = patch_of(&works[i]);

		before += one && one->name && same_end(patch, one);
	}
	return before;
}

static void join(struct patch_port *patch, struct rk_work *other)
{
	patch->other = other;
	/* The rest is done in software before. What is dropped needs nothing done. */
	patch->port.offloads = other ? other->rx->flags & RK_RING_OFFLOADS : RK_RING_OFFLOADS;
}

void patch_join(struct rk_work *works, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct patch_port *patch = patch_of(&works[i]);

		if (!patch)
			continue;
		if (patch->name)
			join(patch, work_opposite(patch, works, count, pair_of(patch, works, i)));
		else
			join(patch, receives(&works[i]) ? &works[i] : NULL);
	}
}

void patch_part(struct rk_work *works, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct patch_port *patch = patch_of(&works[i]);

		if (patch)
			join(patch, NULL);
	}
}

void patch_join_loop(struct rk_work *work)
{
	if (work->port->ops == &loop_ops)
		patch_join(work, 1);
}

/* ---- life ------------------------------------------------------------------------------------- */

static void patch_close(struct rk_port *port)
{
	struct patch_port *patch = (struct patch_port *)port;

	free(patch->name);
	free(patch->end);
	free(patch);
}

static struct patch_port *open_with(const struct rk_port_ops *ops)
{
	struct patch_port *patch = lines_zeroed(1, sizeof(*patch));

	if (!patch)
		return NULL;
	patch->port.ops = ops;
	patch->port.wake_fd = RK_WAKE_NONE;
	patch->port.reads = 1;
	join(patch, NULL);
	return patch;
}

struct rk_port *port_loop_open(const struct rk_port_config *config, char *error, size_t error_bytes)
{
	struct patch_port *patch = open_with(&loop_ops);

	(void)config;
	return patch ? &patch->port : port_refuse(error, error_bytes, "out of memory");
}

struct rk_port *port_patch_open(const struct rk_port_config *config, char *error, size_t error_bytes)
{
	struct patch_port *patch;

	if (!config->input || !config->output)
		return port_refuse(error, error_bytes, "a patch needs a name and an end");
	patch = open_with(&patch_ops);
	if (!patch)
		return port_refuse(error, error_bytes, "out of memory");
	patch->name = strdup(config->input);
	patch->end = strdup(config->output);
	if (patch->name && patch->end)
		return &patch->port;
	patch_close(&patch->port);
	return port_refuse(error, error_bytes, "out of memory");
}
