/* SPDX-License-Identifier: BSD-3-Clause */
/* A VM1 that takes so many cycles a chain, by what was flushed when its buffers were last used; it may pause. */
#include "flush.h"

#include "isa.h"

#include <stdlib.h>

#define BURST 32u

struct machine {
	struct flush flush;
	uint32_t buffers, at;
	uint8_t *treated; /* the level of each buffer's last use */
};

static uint64_t now;

static uint64_t clock_now(void)
{
	return now;
}

/* Of no processor in particular. */
bool isa_flushes(void)
{
	return true;
}

struct machine *machine_new(uint32_t ring, uint32_t buffers, bool possible)
{
	struct machine *machine = calloc(1, sizeof(*machine));

	machine->buffers = buffers;
	machine->treated = calloc(buffers, 1);
	now = 1ull << 40;
	flush_begin(&machine->flush, ring, possible, now);
	return machine;
}

void machine_free(struct machine *machine)
{
	free(machine->treated);
	free(machine);
}

/* Sends chains, `burst` at a time; counts them by level in spent. */
void machine_run(struct machine *machine, const uint32_t *cycles, uint64_t chains, uint32_t burst,
		 uint64_t pause_every, uint64_t *spent)
{
	struct flush *flush = &machine->flush;

	for (uint64_t sent = 0; sent < chains; sent += burst) {
		for (uint32_t i = 0; i < burst; i++) {
			machine->at = (machine->at + 1) % machine->buffers;
			now += cycles[machine->treated[machine->at]];
			machine->treated[machine->at] = flush->level;
			spent[flush->level]++;
		}
		if (pause_every && sent % pause_every < burst)
			now += 100000000;
		flush_count(flush, burst, clock_now);
	}
}
