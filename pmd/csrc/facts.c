/* SPDX-License-Identifier: BSD-3-Clause */
/* What the library says of itself: its ABI, its names, its clock. */
#include "packed.h"
#include "split.h"

#include <time.h>

static const char *const drop_names[RK_DROP_COUNT] = {
	[RK_SENT] = "sent",
	[RK_DROP_BAD_ADDRESS] = "bad_address",
	[RK_DROP_BAD_NEXT] = "bad_next",
	[RK_DROP_CHAIN_LOOP] = "chain_loop",
	[RK_DROP_BAD_DIRECTION] = "bad_direction",
	[RK_DROP_BAD_INDIRECT] = "bad_indirect",
	[RK_DROP_RUNT] = "runt",
	[RK_DROP_OVERSIZE] = "oversize",
	[RK_DROP_DISABLED] = "disabled",
	[RK_DROP_SMALL_BUFFER] = "small_buffer",
	[RK_DROP_VF_DOWN] = "vf_down",
	[RK_DROP_VF_ERROR] = "vf_error",
	[RK_DROP_BAD_OFFLOAD] = "bad_offload",
	[RK_DROP_OVER_MTU] = "over_mtu",
	[RK_DROP_VF_FULL] = "vf_full",
	[RK_DROP_NO_BUFFER] = "no_buffer",
};

static const char *const fault_names[RK_FAULT_COUNT] = {
	[RK_FAULT_NONE] = "none",
	[RK_FAULT_INDEX_JUMP] = "index_jump",
	[RK_FAULT_BAD_HEAD] = "bad_head",
	[RK_FAULT_WINDOW] = "window",
	[RK_FAULT_LONG_CHAIN] = "long_chain",
	[RK_FAULT_MISSING] = "missing",
};

static const struct {
	const char *name;
	uint64_t size;
} structures[] = {
	{"rk_region", sizeof(struct rk_region)},
	{"rk_miss", sizeof(struct rk_miss)},
	{"rk_ring_config", sizeof(struct rk_ring_config)},
	{"rk_direction_stats", sizeof(struct rk_direction_stats)},
	{"rk_offload", sizeof(struct rk_offload)},
	{"rk_frame", sizeof(struct rk_frame)},
	{"rk_vf_window", sizeof(struct rk_vf_window)},
	{"rk_sending", sizeof(struct rk_sending)},
	{"rk_igbvf_config", sizeof(struct rk_igbvf_config)},
	{"rk_virtio_queue", sizeof(struct rk_virtio_queue)},
	{"rk_virtio_report", sizeof(struct rk_virtio_report)},
	{"rk_virtio_config", sizeof(struct rk_virtio_config)},
	{"rk_xdp_ring", sizeof(struct rk_xdp_ring)},
	{"rk_xdp_queue", sizeof(struct rk_xdp_queue)},
	{"rk_xdp_state", sizeof(struct rk_xdp_state)},
	{"rk_xdp_config", sizeof(struct rk_xdp_config)},
	{"rk_port_config", sizeof(struct rk_port_config)},
	{"rk_work", sizeof(struct rk_work)},
	{"rk_poll", sizeof(struct rk_poll)},
	{"rk_loop_stats", sizeof(struct rk_loop_stats)},
};

_Static_assert(sizeof(((struct rk_direction_stats *)0)->drops) / sizeof(uint64_t) >= RK_DROP_COUNT,
	       "a counter for each reason");
_Static_assert(sizeof(struct desc) == 16, "2.7.5");
_Static_assert(sizeof(struct rk_offload) == 10, "5.1.6: struct virtio_net_hdr before num_buffers");
_Static_assert(RK_SENT == 0, "dequeue.c clears verdicts");
_Static_assert(sizeof(struct used_element) == 8, "2.7.8");
_Static_assert(sizeof(struct packed_desc) == sizeof(struct desc), "2.8.13");

uint32_t rk_abi(void)
{
	return RK_ABI;
}

const char *rk_drop_name(uint32_t drop)
{
	return drop < RK_DROP_COUNT ? drop_names[drop] : NULL;
}

const char *rk_fault_name(uint32_t fault)
{
	return fault < RK_FAULT_COUNT ? fault_names[fault] : NULL;
}

uint64_t rk_sizeof(const char *structure)
{
	for (size_t i = 0; i < sizeof(structures) / sizeof(structures[0]); i++)
		if (strcmp(structure, structures[i].name) == 0)
			return structures[i].size;
	return 0;
}

static uint64_t nanoseconds_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_RAW, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

struct instant {
	uint64_t ns, cycles;
};

/* By both clocks: of several looks the one that took the least, so that no other thread ran within it. */
static struct instant instant_now(void)
{
	uint64_t least = UINT64_MAX;
	struct instant found = {0};

	for (uint32_t looks = 0; looks < 8; looks++) {
		const uint64_t begin = cycles_now(), ns = nanoseconds_now(), end = cycles_now();

		if (end - begin >= least)
			continue;
		least = end - begin;
		found = (struct instant){ns, begin};
	}
	return found;
}

uint64_t rk_tsc_hz(void)
{
	static uint64_t hz;
	const uint64_t wanted_ns = 20000000;
	struct instant start, now;

	if (__atomic_load_n(&hz, __ATOMIC_RELAXED))
		return hz;
	start = instant_now();
	do
		now = instant_now();
	while (now.ns - start.ns < wanted_ns);
	__atomic_store_n(&hz,
			 (uint64_t)((double)(now.cycles - start.cycles) * 1e9 /
				    (double)(now.ns - start.ns)),
			 __ATOMIC_RELAXED);
	return hz;
}
