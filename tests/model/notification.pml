/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who wakes whom: one ring, VM1's driver that sleeps until it is called, and a device that sleeps until it is
 * kicked. Nothing here ends by a time: whatever a timeout would mend is found as a state that lasts for ever.
 *
 * The device is pmd/csrc: sleep_for() of loop.c, queue_arm(), queue_disarm(), queue_publish() and queue_call_now()
 * of queue.c, the eventfds of wait.h. VM1 is any driver that keeps to 2.7.7, 2.7.10 and 2.8.10.
 *
 * Stores become visible as x86 has them (TSO): in order, but any time later; a fence waits for all of them.
 * Spin by itself would let each be seen at once, and miss what the fences are for.
 *
 * A store that follows what its process did is one step with that: it becomes visible any time later anyway.
 *
 * MODEL in the environment names what holds in a run: the ring (packed, event_index), a mistake to be found.
 */

#define SIZE 2		/* of the ring */
#define STORES 3	/* that wait to become visible, at most */

/*
 * Places are counted modulo twice the size. For a packed ring that is its wrap counter (2.8.1); for a split one
 * it is the least that the 16 bits of an index can be (size 32768).
 */
#define AFTER(place, span) (((place) + (span)) % (2 * SIZE))
#define DISTANCE(from, to) (((to) + 2 * SIZE - (from)) % (2 * SIZE))
/* 2.7.7.2, 2.7.10.1, 2.8.14: the event lies in [from, to). */
#define CROSSED(event, from, to) (DISTANCE(from, event) < DISTANCE(from, to))

/* The shared words. Descriptors of a packed ring come first; of one only its marks matter. */
#define AVAIL_INDEX SIZE
#define USED_INDEX (SIZE + 1)
#define KICKS (SIZE + 2)	/* used.flags or avail_event; packed: the device's event flags */
#define CALL_EVENT (SIZE + 3)	/* used_event; packed: the driver's desc_event_off and _wrap */
#define CALL_FLAGS (SIZE + 4)	/* avail.flags; packed: the driver's event flags */
byte memory[SIZE + 5];

/* 2.8.10; ENABLE and DISABLE are also what the flags of a split ring say. */
#define ENABLE 0
#define DISABLE 1
#define DESC 2

/* Marks of a packed descriptor, AVAIL 1 and USED 2, by its place. */
#define AVAILABLE_MARK(place) ((place) < SIZE -> 1 : 2)
#define USED_MARK(place) ((place) < SIZE -> 3 : 0)

bool packed, event_index;
/* Mistakes of the device; the last two are VM1's. */
bool no_arm_fence, no_second_look, arm_after_look, level_and_read, no_call_fence, call_before_publish;
bool call_from_last, sleep_before_call;
bool no_kick_fence, no_recheck;

chan vm1_stores = [STORES] of {byte, byte};
chan device_stores = [STORES] of {byte, byte};

/* VM1's kick eventfd: its edge, which epoll keeps for us; its count, which others that have it read as well. */
bool kick_edge, kick_count;
bool call;

byte added;	/* VM1: the place after what it made available */
byte seen;	/* VM1: the place after what it knows to be used */
byte next;	/* the device: the place of the first chain not yet taken */
byte shown;	/* the device: the place after what it published */

#define FENCE(stores) empty(stores)

proctype visible(chan stores)
{
	byte where, value;

	do
	:: atomic { stores?where,value -> memory[where] = value; where = 0; value = 0 }
	od
}

/* The VMM, say: the count is as much its as ours. */
proctype other_reader()
{
	do
	:: atomic { kick_count -> kick_count = false }
	od
}

/* ---- VM1 --------------------------------------------------------------------------------------- */

/* What the reader itself has not yet made visible is newest to it, and never the other side's mark. */
#define IS_USED(place) (memory[(place) % SIZE] == USED_MARK(place) && \
			!(vm1_stores??[eval((place) % SIZE), _]))
#define USED_BEYOND(ahead) \
	(packed -> DISTANCE(seen, added) > ahead && IS_USED(AFTER(seen, ahead)) : \
		   DISTANCE(seen, memory[USED_INDEX]) > ahead)
#define WANTS_KICK(from) \
	(!packed && event_index -> CROSSED(memory[KICKS], from, added) : memory[KICKS] == ENABLE)

/* One chain or more, then the kick if it is wanted. */
inline vm1_add()
{
	atomic { DISTANCE(seen, added) < SIZE -> from = added };
	do
	:: atomic {
		DISTANCE(seen, added) < SIZE && nfull(vm1_stores) ->
		if
		:: packed -> vm1_stores!(added % SIZE),AVAILABLE_MARK(added)
		:: else
		fi;
		added = AFTER(added, 1)
	   }
	:: atomic { from != added -> break }
	od;
	if
	:: !packed -> vm1_stores!AVAIL_INDEX,added
	:: else
	fi;
	no_kick_fence || FENCE(vm1_stores);
	atomic {
		if
		:: WANTS_KICK(from) -> kick_edge = true; kick_count = level_and_read
		:: else
		fi;
		from = 0
	}
}

/* Calls wanted: for the next one used, or with an event index for one of those in flight. */
inline vm1_ask()
{
	atomic {
		do
		:: event_index && ahead + 1 < DISTANCE(seen, added) -> ahead++
		:: break
		od;
		if
		:: event_index -> vm1_stores!CALL_EVENT,AFTER(seen, ahead)
		:: else
		fi;
		if
		:: packed && event_index -> vm1_stores!CALL_FLAGS,DESC
		:: !event_index -> vm1_stores!CALL_FLAGS,ENABLE
		:: else
		fi
	};
	FENCE(vm1_stores)
}

inline vm1_stop_asking()
{
	if
	:: packed || !event_index -> vm1_stores!CALL_FLAGS,DISABLE
	:: else
	fi
}

proctype vm1()
{
	byte from, ahead;

awake:
	do
	:: vm1_add()
	:: atomic { USED_BEYOND(0) -> seen = AFTER(seen, 1) }
	:: vm1_ask();
	   if
	   :: atomic { !no_recheck && USED_BEYOND(ahead) -> ahead = 0; vm1_stop_asking() }
	   :: atomic { no_recheck || !USED_BEYOND(ahead) -> ahead = 0; break }
	   fi
	od;
	do
	:: vm1_add()	/* sending goes on meanwhile */
	:: break
	od;
	atomic { call -> call = false; vm1_stop_asking() };
	goto awake
}

/* ---- the device -------------------------------------------------------------------------------- */

#define IS_AVAILABLE(place) (memory[(place) % SIZE] == AVAILABLE_MARK(place) && \
			     !(device_stores??[eval((place) % SIZE), _]))
/* ring_place(), has_news() */
#define NEWS (packed -> IS_AVAILABLE(next) : memory[AVAIL_INDEX] != next)
/* wants_call(), packed_wants_call() */
#define WANTS_CALL(from, to) \
	(event_index -> (!packed || memory[CALL_FLAGS] != DISABLE) && \
			CROSSED(memory[CALL_EVENT], from, to) : \
			memory[CALL_FLAGS] == ENABLE)

/* queue_call_now(), with what call_if_wanted() does */
inline device_call_now()
{
	if
	:: due ->
		no_call_fence || FENCE(device_stores);
		atomic {
			if
			:: WANTS_CALL(call_from, shown) -> call = true
			:: else
			fi;
			due = false;
			call_from = 0
		}
	:: else
	fi
}

/* Takes some of what is available, and uses it at once. */
inline device_take()
{
	if
	:: packed ->
		do
		:: atomic { DISTANCE(shown, next) < SIZE && IS_AVAILABLE(next) -> next = AFTER(next, 1) }
		:: atomic { next != shown -> break }
		od
	:: else ->
		atomic {
			left = DISTANCE(next, memory[AVAIL_INDEX]);
			assert(left <= SIZE);
			do
			:: left > 1 -> left--
			:: break
			od;
			next = AFTER(next, left);
			left = 0
		}
	fi
}

/*
 * queue_publish(); of a packed ring the first is marked last. The call may come at once or be coalesced: the
 * loop is free to make it.
 */
inline device_publish()
{
	if
	:: call_before_publish -> early = WANTS_CALL(shown, next)
	:: else
	fi;
	atomic {
		if
		:: packed ->
			left = next;
			do
			:: left != shown ->
				left = AFTER(left, 2 * SIZE - 1);
				device_stores!(left % SIZE),USED_MARK(left)
			:: else -> left = 0; break
			od
		:: else -> device_stores!USED_INDEX,next
		fi;
		if
		:: call_before_publish -> call = call || early; early = false
		:: !call_before_publish && (!due || call_from_last) -> call_from = shown; due = true
		:: else
		fi;
		shown = next
	};
	if
	:: DISTANCE(call_from, shown) >= SIZE -> device_call_now()
	:: else
	fi
}

/* queue_arm(), but for the second look; queue_disarm() */
inline device_arm()
{
	device_stores!KICKS,(!packed && event_index -> next : ENABLE);
	no_arm_fence || FENCE(device_stores)
}

inline device_disarm()
{
	if
	:: packed || !event_index -> device_stores!KICKS,DISABLE
	:: else
	fi
}

/* sleep_for() */
inline device_sleep()
{
	if
	:: !sleep_before_call -> device_call_now()
	:: else
	fi;
	if
	:: !arm_after_look -> device_arm()
	:: else
	fi;
	if
	:: atomic { !no_second_look && NEWS -> device_disarm() }
	:: atomic { no_second_look || !NEWS -> skip };
	   if
	   :: arm_after_look -> device_arm()
	   :: else
	   fi;
	   if
	   :: atomic { !level_and_read && kick_edge -> kick_edge = false; device_disarm() }
	   :: atomic { level_and_read && kick_count -> kick_count = false; device_disarm() }
	   fi
	fi
}

proctype device()
{
	byte left, call_from;
	bool early, due;

	do
	:: NEWS -> device_take(); device_publish()
	:: !NEWS -> device_sleep()
	:: due -> device_call_now()	/* its time has come */
	od
}

/* ---- what must hold ---------------------------------------------------------------------------- */

/* Nothing moves any more: then nothing that one side has given is unknown to the other. */
proctype nothing_is_lost()
{
	timeout;
	assert(next == added);
	assert(seen == shown && shown == added)
}

/* A name in MODEL sets the variable of that name; none is a part of another. */
#define SET(name) now.name = strstr(getenv("MODEL"), #name) != NULL

init {
	atomic {
		c_code {
			SET(packed);
			SET(event_index);
			SET(no_arm_fence);
			SET(no_second_look);
			SET(arm_after_look);
			SET(level_and_read);
			SET(no_call_fence);
			SET(call_before_publish);
			SET(call_from_last);
			SET(sleep_before_call);
			SET(no_kick_fence);
			SET(no_recheck);
		};
		memory[KICKS] = (event_index && !packed -> 0 : DISABLE);
		memory[CALL_FLAGS] = (event_index && packed -> DISABLE : ENABLE);
		run visible(vm1_stores);
		run visible(device_stores);
		run other_reader();
		run vm1();
		run device();
		run nothing_is_lost()
	}
}
