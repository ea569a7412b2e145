/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The packet port: one AF_PACKET socket on a network interface.
 *
 * Receive: a TPACKET_V2 ring. V3's blocks are shown when full or when a timer of at least a millisecond
 * ends; V2 shows each frame at once, which is what polling is for. Frames longer than a slot (an
 * interface that merges segments) come whole through the socket's queue (PACKET_COPY_THRESH).
 * Transmit: sendmmsg, because it takes segments where they are and reports each frame, where a transmit
 * ring wants a copy and reports none. Documentation/networking/packet_mmap.rst describes the ring.
 */
#define _GNU_SOURCE
#include "port.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "port_checksum.h"

#define SLOT_BYTES 2048u
#define SLOT_COUNT 4096u
#define BLOCK_BYTES (1u << 16)
#define RING_BYTES ((size_t)SLOT_BYTES * SLOT_COUNT)
#define MAC_BYTES 12u /* both addresses: a VLAN tag follows them */
#define TAG_BYTES 4u
#define SEGMENTS_MAX 3u
#define IDLE_TURNS 4096u /* between two looks at the kernel's drop counter */

struct packet_port {
	struct rk_port port;
	struct port_sender sender;
	uint8_t *ring;
	uint32_t next;  /* the oldest slot not given back */
	uint32_t idle;  /* turns without a frame since the last look at the drops */
	uint32_t seen;  /* how many slots from next on were looked at before: their long frames are in
			 * the pool, their checksums finished, their losses counted */
	struct port_pool pool;
	struct iovec shown[RK_BURST_MAX][SEGMENTS_MAX];
	uint8_t tags[RK_BURST_MAX][TAG_BYTES];
};

static struct tpacket2_hdr *packet_slot(const struct packet_port *packet, uint32_t index)
{
	return (struct tpacket2_hdr *)(packet->ring + (size_t)(index % SLOT_COUNT) * SLOT_BYTES);
}

/* ---- transmit --------------------------------------------------------------------------------- */

/* Without a queueing discipline ENOBUFS means a full device queue, but also a link that is down. */
static uint32_t packet_verdict(int fd, int error)
{
	struct sockaddr_ll address;
	socklen_t length = sizeof(address);
	struct ifreq request = {0};

	if (error != ENOBUFS)
		return port_verdict(error);
	if (getsockname(fd, (struct sockaddr *)&address, &length) != 0)
		return RK_DROP_VF_ERROR;
	request.ifr_ifindex = address.sll_ifindex;
	if (ioctl(fd, SIOCGIFNAME, &request) != 0 || ioctl(fd, SIOCGIFFLAGS, &request) != 0)
		return RK_DROP_VF_DOWN;
	return request.ifr_flags & IFF_RUNNING ? RK_SENT : RK_DROP_VF_DOWN;
}

static uint32_t packet_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	return port_send(&((struct packet_port *)port)->sender, frames, n);
}

/* ---- receive ---------------------------------------------------------------------------------- */

static void packet_count_drops(struct packet_port *packet)
{
	struct tpacket_stats statistics;
	socklen_t length = sizeof(statistics);

	packet->idle = 0;
	if (getsockopt(packet->sender.fd, SOL_PACKET, PACKET_STATISTICS, &statistics, &length) == 0)
		packet->port.rx_missed += statistics.tp_drops; /* since the last call */
}

/* The whole frame of a slot that is too short for it, into the pool; 0 if there is no buffer now. */
static int packet_fetch(struct packet_port *packet, const struct tpacket2_hdr *slot)
{
	struct port_pool *pool = &packet->pool;
	struct iovec *buffer;
	ssize_t length;
	uint32_t free_slot;
	int attempts = 1;

	if (port_pool_space(pool, 1, &free_slot) == 0)
		return 0;
	buffer = &pool->buffers[free_slot];
	do { /* an earlier error of the interface is told once, instead of the frame */
		length = recv(packet->sender.fd, buffer->iov_base, RK_FRAME_MAX,
			      MSG_DONTWAIT | MSG_TRUNC);
	} while (length < 0 && errno == ENETDOWN && attempts-- > 0);
	if (length != (ssize_t)slot->tp_len || length > (ssize_t)RK_FRAME_MAX)
		length = 0; /* longer than any frame of VM1: passed over like a lost copy */
	buffer->iov_len = (size_t)length;
	pool->count++;
	return 1;
}

/* Makes segments of a frame, with the tag that the kernel took out put back (802.1Q). */
static void packet_show(struct packet_port *packet, uint32_t i, const struct tpacket2_hdr *slot,
			const struct iovec *data, struct rk_frame *frame)
{
	struct iovec *segments = packet->shown[i];
	uint32_t bytes = (uint32_t)data->iov_len;
	uint8_t *base = data->iov_base;
	uint16_t type = ETH_P_8021Q;

	if (!(slot->tp_status & TP_STATUS_VLAN_VALID)) {
		segments[0] = *data;
		port_show(frame, segments, 1, bytes);
		return;
	}
	if (slot->tp_status & TP_STATUS_VLAN_TPID_VALID)
		type = slot->tp_vlan_tpid;
	packet->tags[i][0] = (uint8_t)(type >> 8);
	packet->tags[i][1] = (uint8_t)type;
	packet->tags[i][2] = (uint8_t)(slot->tp_vlan_tci >> 8);
	packet->tags[i][3] = (uint8_t)slot->tp_vlan_tci;
	segments[0] = (struct iovec){base, MAC_BYTES};
	segments[1] = (struct iovec){packet->tags[i], TAG_BYTES};
	segments[2] = (struct iovec){base + MAC_BYTES, bytes - MAC_BYTES};
	port_show(frame, segments, 3, bytes + TAG_BYTES);
}

/* Whether the frame can be shown: all of it is there, and it is neither runt nor oversize. */
static int packet_whole(const struct tpacket2_hdr *slot, const struct iovec *data)
{
	return data->iov_len == slot->tp_len && data->iov_len >= ETH_HLEN &&
	       data->iov_len + TAG_BYTES <= RK_FRAME_MAX;
}

static void packet_release(struct packet_port *packet, struct tpacket2_hdr *slot)
{
	if (slot->tp_status & TP_STATUS_COPY)
		port_pool_done(&packet->pool, 1);
	if (packet->seen > 0)
		packet->seen--;
	packet->next++;
	/* Release: the kernel writes the slot only after our last read of it. */
	__atomic_store_n(&slot->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
}

static uint32_t packet_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct packet_port *packet = (struct packet_port *)port;
	uint32_t long_frames = 0;
	uint32_t i = 0;

	if (n > RK_BURST_MAX)
		n = RK_BURST_MAX;
	while (i < n) {
		struct tpacket2_hdr *slot = packet_slot(packet, packet->next + i);
		/* Acquire: the frame is read after the status that says it is there. */
		uint32_t status = __atomic_load_n(&slot->tp_status, __ATOMIC_ACQUIRE);
		struct iovec data = {(uint8_t *)slot + slot->tp_mac, slot->tp_snaplen};

		if (!(status & TP_STATUS_USER))
			break;
		if (status & TP_STATUS_COPY) {
			if (i >= packet->seen && !packet_fetch(packet, slot))
				break;
			data = packet->pool.buffers[(packet->pool.first + long_frames) % PORT_POOL];
			long_frames++;
		}
		if (i >= packet->seen) {
			packet->seen = i + 1;
			if (status & TP_STATUS_LOSING)
				packet_count_drops(packet);
			if (status & TP_STATUS_CSUMNOTREADY && packet_whole(slot, &data))
				checksum_finish(data.iov_base, (uint32_t)data.iov_len);
		}
		if (packet_whole(slot, &data)) {
			packet_show(packet, i, slot, &data, &frames[i]);
			i++;
			continue;
		}
		if (i > 0)
			break; /* passed over when it is the oldest */
		packet->port.rx_missed++;
		packet_release(packet, slot);
		long_frames = 0;
	}
	if (i == 0 && ++packet->idle == IDLE_TURNS)
		packet_count_drops(packet);
	return i;
}

static void packet_rx_done(struct rk_port *port, uint32_t k)
{
	struct packet_port *packet = (struct packet_port *)port;

	while (k-- > 0)
		packet_release(packet, packet_slot(packet, packet->next));
}

/* ---- open and close --------------------------------------------------------------------------- */

static void packet_close(struct rk_port *port)
{
	struct packet_port *packet = (struct packet_port *)port;

	munmap(packet->ring, RING_BYTES);
	close(packet->sender.fd);
	port_pool_close(&packet->pool);
	free(packet);
}

static const struct rk_port_ops packet_ops = {
	.kind = "packet",
	.tx = packet_tx,
	.rx = packet_rx,
	.rx_done = packet_rx_done,
	.close = packet_close,
};

/* The mapped ring, or MAP_FAILED with errno. */
static void *packet_map_ring(int fd)
{
	int version = TPACKET_V2;
	int copy = 1; /* with a ring it only matters that it is not zero */
	struct tpacket_req request = {
		.tp_block_size = BLOCK_BYTES,
		.tp_block_nr = (uint32_t)(RING_BYTES / BLOCK_BYTES),
		.tp_frame_size = SLOT_BYTES,
		.tp_frame_nr = SLOT_COUNT,
	};

	if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) != 0 ||
	    setsockopt(fd, SOL_PACKET, PACKET_COPY_THRESH, &copy, sizeof(copy)) != 0 ||
	    setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof(request)) != 0)
		return MAP_FAILED;
	return mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
}

struct rk_port *port_packet_open(const struct rk_port_config *config, char *error,
				 size_t error_bytes)
{
	struct packet_port *packet = lines_zeroed(1, sizeof(*packet));

	if (!packet)
		return port_refuse(error, error_bytes, "out of memory");
	if (port_pool_open(&packet->pool) != 0) {
		free(packet);
		return port_refuse(error, error_bytes, "out of memory");
	}
	packet->ring = packet_map_ring(config->fd);
	if (packet->ring == MAP_FAILED) {
		port_refuse(error, error_bytes, "the socket's receive ring: %s", strerror(errno));
		port_pool_close(&packet->pool);
		free(packet);
		return NULL;
	}
	packet->port.ops = &packet_ops;
	packet->port.wake_fd = config->fd;
	packet->sender.fd = config->fd;
	packet->sender.verdict = packet_verdict;
	return &packet->port;
}
