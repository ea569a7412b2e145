/* SPDX-License-Identifier: BSD-3-Clause */
/* A VM1 that takes so many cycles a chain, by what is flushed; once in a while it pauses. */
#include "flush.h"

size_t machine_bytes(void)
{
	return sizeof(struct flush);
}

/* Sends chains, 32 at a time; counts them by level in spent. *now goes on. */
void machine_run(struct flush *flush, const uint32_t *cycles, uint64_t chains, uint64_t pause_every,
		 uint64_t *now, uint64_t *spent)
{
	for (uint64_t sent = 0; sent < chains; sent += 32) {
		spent[flush->level] += 32;
		*now += 32 * (uint64_t)cycles[flush->level];
		if (pause_every && sent % pause_every < 32)
			*now += 100000000;
		flush_count(flush, 32, *now);
	}
}
