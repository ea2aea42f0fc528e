/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The end of a grace period by counting: module/readers.c, has_readers().  A reader counts
 * itself in and out on the CPU that it is on then, and in the index that SRCU has then.
 * Other than in the rest of the model, memory is x86's: a store may be seen late.
 */
#include "kvm.pml"

#define READERS 2
#define CPUS 2
#define COUNTS (2 * CPUS)

#define OLD 1
#define NEW 2

byte counts[2 * COUNTS];		/* [BEGUN or ENDED + cpu * 2 + index] */
#define BEGUN 0
#define ENDED COUNTS
bit srcu_idx;
byte published = OLD;
bool in_store_buffer;			/* the publication, of the CPU that commits */

#ifdef ONE_INDEX_COUNTED
#define IS_COUNTED(i) ((i) % 2 == 0)
#elif defined(ONE_CPU_COUNTED)
#define IS_COUNTED(i) ((i) < 2)
#else
#define IS_COUNTED(i) true
#endif

inline sum(which, total)
{
	i = 0;
	total = 0;
	do
	:: i < COUNTS ->
		total = total + (IS_COUNTED(i) -> counts[which + i] : 0);
		i++
	:: else -> break
	od
}

inline publish()
{
	in_store_buffer = true
}

inline smp_mb()
{
	!in_store_buffer
}

active proctype store_buffer()
{
end:	do
	:: atomic { in_store_buffer -> published = NEW; in_store_buffer = false }
	od
}

/* SRCU's own grace periods, for others */
active proctype srcu()
{
	srcu_idx = 1;
	srcu_idx = 0
}

active proctype commit()
{
	byte i, nr_ended, nr_begun;

#ifndef COUNTED_BEFORE_PUBLISHING
	publish();
#endif
	do
	::
#ifdef BEGUN_COUNTED_FIRST
		smp_mb();
		sum(BEGUN, nr_begun);
		sum(ENDED, nr_ended);
#else
		sum(ENDED, nr_ended);
#ifndef NO_BARRIER_WHILE_COUNTING
		smp_mb();
#endif
		sum(BEGUN, nr_begun);
#endif
		if
		:: nr_begun == nr_ended -> break
		:: else
		fi
	od;
#ifdef COUNTED_BEFORE_PUBLISHING
	publish();
	smp_mb();
#endif
	freed = freed | BIT(OLD)
}

/* Its barriers are there: the store of a count is seen before it reads. */
active [READERS] proctype reader()
{
	byte cpu, index, slot;

	index = srcu_idx;
	if
	:: cpu = 0
	:: cpu = 1
	fi;
	counts[BEGUN + cpu * 2 + index]++;
	slot = published;
	use(slot);
	if
	:: cpu = 0
	:: cpu = 1
	fi;
	counts[ENDED + cpu * 2 + index]++
}
