/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The pcap port: replays a capture once, and writes what VM1 sends to another.
 *
 * The classic format only: a file header of 24 bytes, then records of 16 bytes and the frame. Both byte
 * orders and both resolutions are read; native order and nanoseconds are written.
 */
#define _GNU_SOURCE
#include "port.h"

#include <byteswap.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAGIC_MICROSECONDS 0xa1b2c3d4u
#define MAGIC_NANOSECONDS 0xa1b23c4du
#define MAGIC_PCAPNG 0x0a0d0d0au
#define VERSION_MAJOR 2
#define VERSION_MINOR 4
#define LINK_ETHERNET 1u
#define LINK_MASK 0x03ffffffu /* the upper bits tell of a frame check sequence */
#define RECORD_MAX 262144u    /* what any writer of this format takes for the longest frame */
#define ETHERNET_HEADER 14u
#define READ_BYTES (1u << 20)
#define WRITE_BYTES (1u << 18)
#define FLUSH_SECONDS 1

struct file_header {
	uint32_t magic;
	uint16_t major, minor;
	uint32_t zone, accuracy, longest, link;
};

struct record {
	uint32_t seconds, fraction, bytes, wire_bytes;
};

/* With as much in the buffer, the oldest record is there as a whole. */
#define READ_AHEAD (RECORD_MAX + sizeof(struct record))
_Static_assert(READ_BYTES > READ_AHEAD, "a record fits the buffer");
_Static_assert(WRITE_BYTES > RK_FRAME_MAX + sizeof(struct record), "a frame fits the buffer");

struct pcap_port {
	struct rk_port port;
	int input, output; /* -1: none */
	int swapped;       /* the input's byte order is not ours */
	uint8_t *read_buffer, *write_buffer;
	uint32_t read_start, read_end; /* what is in the read buffer */
	uint32_t write_bytes;          /* what is in the write buffer */
	time_t flushed;
	struct iovec shown[RK_BURST_MAX];
};

/* ---- replay ----------------------------------------------------------------------------------- */

/* After this the oldest record is in the buffer as a whole, unless the file ends before. */
static void pcap_fill(struct pcap_port *pcap)
{
	uint32_t kept = pcap->read_end - pcap->read_start;

	if (pcap->input < 0 || kept >= READ_AHEAD)
		return;
	memmove(pcap->read_buffer, pcap->read_buffer + pcap->read_start, kept);
	pcap->read_start = 0;
	pcap->read_end = kept;
	while (pcap->read_end < READ_BYTES) {
		ssize_t got = read(pcap->input, pcap->read_buffer + pcap->read_end,
				   READ_BYTES - pcap->read_end);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			close(pcap->input);
			pcap->input = -1;
			return;
		}
		pcap->read_end += (uint32_t)got;
	}
}

/* The bytes of the frame whose record is at `at`; UINT32_MAX where no whole, sane record is. */
static uint32_t pcap_record(const struct pcap_port *pcap, uint32_t at)
{
	struct record record;
	uint32_t left = pcap->read_end - at;

	if (left < sizeof(record))
		return UINT32_MAX;
	memcpy(&record, pcap->read_buffer + at, sizeof(record));
	if (pcap->swapped)
		record.bytes = bswap_32(record.bytes);
	if (record.bytes > RECORD_MAX || record.bytes > left - sizeof(record))
		return UINT32_MAX;
	return record.bytes;
}

/* Ends the replay: what remains in the buffer is no record. */
static void pcap_stop(struct pcap_port *pcap)
{
	if (pcap->input >= 0)
		close(pcap->input);
	pcap->input = -1;
	if (pcap->read_start != pcap->read_end)
		pcap->port.rx_missed++;
	pcap->read_start = pcap->read_end;
}

static void pcap_flush_if_due(struct pcap_port *pcap);

static uint32_t pcap_rx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct pcap_port *pcap = (struct pcap_port *)port;
	uint32_t i = 0;
	uint32_t at;

	pcap_flush_if_due(pcap);
	if (!pcap->read_buffer)
		return 0;
	pcap_fill(pcap);
	if (n > RK_BURST_MAX)
		n = RK_BURST_MAX;
	at = pcap->read_start;
	while (i < n) {
		uint32_t bytes = pcap_record(pcap, at);
		uint32_t next = at + (uint32_t)sizeof(struct record) + bytes;

		if (bytes == UINT32_MAX) {
			if (i == 0 && (pcap->input < 0 || pcap->read_end - at >= READ_AHEAD))
				pcap_stop(pcap);
			break;
		}
		if (bytes >= ETHERNET_HEADER && bytes <= RK_FRAME_MAX) {
			pcap->shown[i].iov_base = pcap->read_buffer + at + sizeof(struct record);
			pcap->shown[i].iov_len = bytes;
			port_show(&frames[i], &pcap->shown[i], 1, bytes);
			i++;
		} else if (i == 0) {
			pcap->port.rx_missed++;
			pcap->read_start = next;
		} else {
			break; /* passed over when it is the oldest */
		}
		at = next;
	}
	return i;
}

static void pcap_rx_done(struct rk_port *port, uint32_t k)
{
	struct pcap_port *pcap = (struct pcap_port *)port;

	while (k-- > 0)
		pcap->read_start +=
			(uint32_t)sizeof(struct record) + pcap_record(pcap, pcap->read_start);
}

/* ---- capture ---------------------------------------------------------------------------------- */

static time_t seconds_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return now.tv_sec;
}

/* Writes what the file takes; the rest stays for the next time. */
static void pcap_flush(struct pcap_port *pcap)
{
	ssize_t wrote = write(pcap->output, pcap->write_buffer, pcap->write_bytes);

	pcap->flushed = seconds_now();
	if (wrote <= 0)
		return;
	pcap->write_bytes -= (uint32_t)wrote;
	memmove(pcap->write_buffer, pcap->write_buffer + wrote, pcap->write_bytes);
}

static void pcap_flush_if_due(struct pcap_port *pcap)
{
	if (pcap->write_bytes > 0 && seconds_now() - pcap->flushed >= FLUSH_SECONDS)
		pcap_flush(pcap);
}

static uint32_t pcap_tx(struct rk_port *port, struct rk_frame *frames, uint32_t n)
{
	struct pcap_port *pcap = (struct pcap_port *)port;
	struct timespec now;
	struct record record;

	if (pcap->output < 0)
		return n;
	clock_gettime(CLOCK_REALTIME, &now);
	record.seconds = (uint32_t)now.tv_sec;
	record.fraction = (uint32_t)now.tv_nsec;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t bytes = frames[i].bytes;

		if (bytes > RK_FRAME_MAX) {
			frames[i].verdict = RK_DROP_OVERSIZE;
			continue;
		}
		if (pcap->write_bytes + sizeof(record) + bytes > WRITE_BYTES)
			pcap_flush(pcap);
		if (pcap->write_bytes + sizeof(record) + bytes > WRITE_BYTES)
			return i + port_drop(&frames[i], n - i, RK_DROP_VF_ERROR);
		record.bytes = record.wire_bytes = bytes;
		memcpy(pcap->write_buffer + pcap->write_bytes, &record, sizeof(record));
		pcap->write_bytes += (uint32_t)sizeof(record);
		port_copy_frame(pcap->write_buffer + pcap->write_bytes, &frames[i], port->flush);
		pcap->write_bytes += bytes;
	}
	pcap_flush_if_due(pcap);
	return n;
}

/* ---- open and close --------------------------------------------------------------------------- */

static void pcap_free(struct pcap_port *pcap)
{
	if (pcap->input >= 0)
		close(pcap->input);
	if (pcap->output >= 0)
		close(pcap->output);
	free(pcap->read_buffer);
	free(pcap->write_buffer);
	free(pcap);
}

static void pcap_close(struct rk_port *port)
{
	struct pcap_port *pcap = (struct pcap_port *)port;
	uint32_t left;

	do {
		left = pcap->write_bytes;
		if (left > 0)
			pcap_flush(pcap);
	} while (pcap->write_bytes < left);
	pcap_free(pcap);
}

static const struct rk_port_ops pcap_ops = {
	.kind = "pcap",
	.tx = pcap_tx,
	.rx = pcap_rx,
	.rx_done = pcap_rx_done,
	.close = pcap_close,
};

/* Why the file that starts so cannot be replayed, or NULL; *swapped tells its byte order. */
static const char *pcap_judge(const struct file_header *header, ssize_t bytes, int *swapped)
{
	uint32_t magic = header->magic, link = header->link;
	uint16_t major = header->major;

	if (bytes >= (ssize_t)sizeof(magic) && magic == MAGIC_PCAPNG)
		return "is pcapng, only pcap can be read";
	if (bytes != (ssize_t)sizeof(*header))
		return "is too short for a pcap file";
	*swapped = magic == bswap_32(MAGIC_MICROSECONDS) || magic == bswap_32(MAGIC_NANOSECONDS);
	if (*swapped) {
		link = bswap_32(link);
		major = bswap_16(major);
	} else if (magic != MAGIC_MICROSECONDS && magic != MAGIC_NANOSECONDS) {
		return "is not a pcap file";
	}
	if (major != VERSION_MAJOR)
		return "is not of pcap version 2";
	if ((link & LINK_MASK) != LINK_ETHERNET)
		return "does not hold Ethernet frames";
	return NULL;
}

/* 0, or -1 with the cause written. */
static int pcap_open_input(struct pcap_port *pcap, const char *path, char *error,
			   size_t error_bytes)
{
	struct file_header header = {0};
	struct stat status;
	const char *cause;

	/* Non-blocking, so that a pipe without a writer does not hold the open. */
	pcap->input = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (pcap->input < 0 || fstat(pcap->input, &status) != 0)
		cause = strerror(errno);
	else if (!S_ISREG(status.st_mode))
		cause = "is not a regular file";
	else
		cause = pcap_judge(&header, read(pcap->input, &header, sizeof(header)),
				   &pcap->swapped);
	if (!cause && !(pcap->read_buffer = lines_zeroed(1, READ_BYTES)))
		cause = "out of memory";
	if (!cause)
		return 0;
	port_refuse(error, error_bytes, "%s: %s", path, cause);
	return -1;
}

/* 0, or -1 with the cause written. Whole records go to the file's end; one that is empty is begun. */
static int pcap_open_output(struct pcap_port *pcap, const char *path, char *error,
			    size_t error_bytes)
{
	const struct file_header header = {
		.magic = MAGIC_NANOSECONDS,
		.major = VERSION_MAJOR,
		.minor = VERSION_MINOR,
		.longest = RECORD_MAX,
		.link = LINK_ETHERNET,
	};
	struct stat status;

	pcap->output = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_APPEND, 0666);
	if (pcap->output < 0 || fstat(pcap->output, &status) != 0 ||
	    (status.st_size == 0 &&
	     write(pcap->output, &header, sizeof(header)) != (ssize_t)sizeof(header))) {
		port_refuse(error, error_bytes, "%s: %s", path, strerror(errno));
		return -1;
	}
	pcap->write_buffer = lines_zeroed(1, WRITE_BYTES);
	if (!pcap->write_buffer) {
		port_refuse(error, error_bytes, "out of memory");
		return -1;
	}
	pcap->flushed = seconds_now();
	return 0;
}

struct rk_port *port_pcap_open(const struct rk_port_config *config, char *error, size_t error_bytes)
{
	struct pcap_port *pcap = lines_zeroed(1, sizeof(*pcap));

	if (!pcap)
		return port_refuse(error, error_bytes, "out of memory");
	pcap->port.ops = &pcap_ops;
	pcap->port.reads = 1;
	pcap->input = pcap->output = -1;
	if ((config->input && pcap_open_input(pcap, config->input, error, error_bytes) != 0) ||
	    (config->output && pcap_open_output(pcap, config->output, error, error_bytes) != 0)) {
		pcap_free(pcap);
		return NULL;
	}
	return &pcap->port;
}
