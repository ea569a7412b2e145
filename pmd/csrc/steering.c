/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A port that several queue pairs share: each has a lane, which is a port as its turns see it.
 *
 * The port's frames are shown to the lanes where they are, in a window over the oldest: each belongs to one lane,
 * and leaves the port once it and all before it are taken. So a lane that takes none holds the others up;
 * one that cannot take its frames, because VM1 has no buffers there, loses them once it does (5.1.6.5.6 says
 * where a frame should go, not that the others wait for it).
 */
#include "flow.h"
#include "lines.h"
#include "queue.h"

#include <errno.h>

#define WINDOW RK_BURST_MAX
/* A port shows 64 frames at least, if it has them: of so many, some may be taken that it cannot let go of. */
#define WINDOW_CROWDED 32u
#define LANES_MAX 128u
#define NONE UINT8_MAX
/* Frames that a VF holds: it has at most as many descriptors. */
#define HELD_MAX 65536u

/* Frames of the window, oldest first, linked by window.next. */
struct lane {
	struct rk_port port;
	struct rk_steering *steering;
	struct rk_queue *rx; /* NULL: nothing is steered here */
	uint16_t first, last, count;
	uint8_t number;
	uint32_t held_done;
};

struct rk_steering {
	struct rk_port *port;
	struct rk_frame shown[WINDOW]; /* by the port, the last time it was asked */
	uint32_t taken_since;          /* frames that the port let go of since then: shown[0..taken_since) */
	uint32_t count;                /* frames in the window */
	uint16_t oldest;               /* its first slot; the others follow, and wrap */
	uint8_t lane_of[WINDOW];       /* by slot; NONE: taken */
	uint16_t next[WINDOW];
	struct flow_table flows;
	uint32_t receivers;
	uint8_t receiver[LANES_MAX];   /* lanes that receive */
	uint16_t held_first;           /* by modulo HELD_MAX */
	uint32_t held;
	uint8_t holder[HELD_MAX];      /* the lane of each frame that the VF holds, oldest first */
	struct lane lanes[LANES_MAX];
};

/* ---- the window --------------------------------------------------------------------------------- */

/* Lets the port have what was taken, as far as nothing before it is left. */
static void let_go(struct rk_steering *steering)
{
	uint32_t k = 0;

	while (k < steering->count &&
	       steering->lane_of[(steering->oldest + k) % WINDOW] == NONE)
		k++;
	if (k == 0)
		return;
	steering->oldest = (uint16_t)((steering->oldest + k) % WINDOW);
	steering->count -= k;
	steering->taken_since += k;
	steering->port->ops->rx_done(steering->port, k);
}

/* Takes the lane's oldest frame off it. */
static void take(struct lane *lane)
{
	struct rk_steering *steering = lane->steering;

	steering->lane_of[lane->first] = NONE;
	lane->first = steering->next[lane->first];
	lane->count--;
}

static void append(struct lane *lane, uint16_t slot)
{
	struct rk_steering *steering = lane->steering;

	steering->lane_of[slot] = lane->number;
	if (lane->count++)
		steering->next[lane->last] = slot;
	else
		lane->first = slot;
	lane->last = slot;
	lane->rx->waiting = true; /* its loop must not sleep now: nobody else tells of these */
}

static void drop(struct lane *lane)
{
	lane->rx->stats->drops[RK_DROP_NO_BUFFER]++;
	take(lane);
}

static struct lane *oldest_lane(struct rk_steering *steering)
{
	return &steering->lanes[steering->lane_of[steering->oldest]];
}

/* Drops what keeps the other lanes from their frames, if VM1 has no buffers for it: some, whether any. */
static bool relieve(struct rk_steering *steering)
{
	uint32_t dropped = 0;

	while (dropped < WINDOW_CROWDED && steering->count >= WINDOW_CROWDED &&
	       !queue_has_news(oldest_lane(steering)->rx)) {
		drop(oldest_lane(steering));
		let_go(steering);
		dropped++;
	}
	return dropped;
}

/* 5.1.6.5.6: to where the flow was last sent from; any other flow always to the same pair. */
static struct lane *choose(struct rk_steering *steering, const struct rk_frame *frame)
{
	const uint32_t hash = flow_hash(frame);
	const uint32_t any = (uint32_t)((uint64_t)hash * steering->receivers >> 32);

	return &steering->lanes[flow_find(&steering->flows, hash, steering->receiver[any])];
}

static uint32_t show(struct rk_steering *steering)
{
	const uint32_t before = steering->count;
	const uint32_t n = steering->port->ops->rx(steering->port, steering->shown, WINDOW);

	if (n < before) /* in trouble: it shows nothing any more */
		return 0;
	steering->taken_since = 0;
	for (; steering->count < n; steering->count++)
		append(choose(steering, &steering->shown[steering->count]),
		       (uint16_t)((steering->oldest + steering->count) % WINDOW));
	return steering->count - before;
}

/* ---- a lane ------------------------------------------------------------------------------------- */

static uint32_t lane_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct lane *lane = (struct lane *)port;
	struct rk_steering *steering = lane->steering;
	uint16_t slot;

	if (!lane->count && !show(steering) && relieve(steering))
		show(steering);
	if (n > lane->count)
		n = lane->count;
	slot = lane->first;
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t place = (uint32_t)(slot + WINDOW - steering->oldest) % WINDOW;

		frames[i] = steering->shown[steering->taken_since + place];
		slot = steering->next[slot];
	}
	return n;
}

static void lane_rx_done(struct rk_port *port, uint32_t k)
{
	struct lane *lane = (struct lane *)port;

	while (k--)
		take(lane);
	lane->rx->waiting |= lane->count;
	let_go(lane->steering);
}

static uint32_t lane_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct lane *lane = (struct lane *)port;
	struct rk_steering *steering = lane->steering;
	uint32_t done;

	if (n > HELD_MAX - steering->held)
		n = HELD_MAX - steering->held;
	if (lane->rx && steering->receivers > 1)
		for (uint32_t i = 0; i < n; i++)
			flow_learn(&steering->flows, flow_hash(&frames[i]), lane->number);
	steering->port->flush = port->flush;
	done = steering->port->ops->tx(steering->port, frames, n);
	for (uint32_t i = 0; i < done; i++)
		if (frames[i].verdict == RK_HELD)
			steering->holder[(steering->held_first + steering->held++) % HELD_MAX] =
				lane->number;
	return done;
}

static uint32_t lane_reclaim(struct rk_port *port)
{
	struct lane *lane = (struct lane *)port;
	struct rk_steering *steering = lane->steering;
	uint32_t done = steering->port->ops->reclaim(steering->port);

	for (; done && steering->held; done--, steering->held--)
		steering->lanes[steering->holder[steering->held_first++]].held_done++;
	done = lane->held_done;
	lane->held_done = 0;
	return done;
}

/* A loop that has one of the lanes has all of them: each asks once more, which changes nothing. */
static uint32_t lane_arm(struct rk_port *port)
{
	struct rk_port *shared = ((struct lane *)port)->steering->port;

	return shared->ops->arm ? shared->ops->arm(shared) : RK_ARMED;
}

static void lane_disarm(struct rk_port *port)
{
	struct rk_port *shared = ((struct lane *)port)->steering->port;

	if (shared->ops->disarm)
		shared->ops->disarm(shared);
}

static bool lane_takes(const struct rk_port *port, const struct rk_frame *frame)
{
	const struct rk_port *shared = ((const struct lane *)port)->steering->port;

	return !shared->ops->takes || shared->ops->takes(shared, frame);
}

static void lane_close(struct rk_port *port)
{
	(void)port; /* the steering's */
}

static const struct rk_port_ops lane_ops = {.kind = "lane",
					    .tx = lane_tx,
					    .rx = lane_rx,
					    .rx_done = lane_rx_done,
					    .close = lane_close,
					    .arm = lane_arm,
					    .disarm = lane_disarm,
					    .takes = lane_takes};
static const struct rk_port_ops holding_lane_ops = {.kind = "lane",
						    .tx = lane_tx,
						    .rx = lane_rx,
						    .rx_done = lane_rx_done,
						    .reclaim = lane_reclaim,
						    .close = lane_close,
						    .arm = lane_arm,
						    .disarm = lane_disarm,
						    .takes = lane_takes};

/* ---- its life ----------------------------------------------------------------------------------- */

struct rk_steering *rk_steering_new(struct rk_port *port, struct rk_queue *const *receivers,
				    uint32_t count)
{
	struct rk_steering *steering;

	if (count == 0 || count > LANES_MAX) {
		errno = EINVAL;
		return NULL;
	}
	steering = lines_zeroed(1, sizeof(*steering));
	if (!steering)
		return NULL;
	steering->port = port;
	for (uint32_t i = 0; i < count; i++) {
		struct lane *lane = &steering->lanes[i];

		lane->port = (struct rk_port){
			.ops = port->ops->reclaim ? &holding_lane_ops : &lane_ops,
			.offloads = port->offloads,
			.reads = port->reads,
			.wake_fd = port->wake_fd,
		};
		lane->steering = steering;
		lane->number = (uint8_t)i;
		lane->rx = receivers[i];
		if (lane->rx)
			steering->receiver[steering->receivers++] = (uint8_t)i;
	}
	return steering;
}

struct rk_port *rk_steering_port(struct rk_steering *steering, uint32_t pair)
{
	return &steering->lanes[pair].port;
}

void rk_steering_free(struct rk_steering *steering)
{
	uint32_t last = 0;

	if (!steering)
		return;
	/* Whoever has the port next is not to be shown again what was taken, nor what came before it. */
	for (uint32_t i = 0; i < steering->count; i++)
		if (steering->lane_of[(steering->oldest + i) % WINDOW] == NONE)
			last = i;
	for (uint32_t i = 0; i < last; i++)
		if (steering->lane_of[(steering->oldest + i) % WINDOW] != NONE)
			drop(&steering->lanes[steering->lane_of[(steering->oldest + i) % WINDOW]]);
	let_go(steering);
	free(steering);
}
