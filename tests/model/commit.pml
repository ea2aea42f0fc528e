/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The commit: module/commit.c's apply(), by its step names.  What a model has no
 * reader for is left out of it by a macro:
 *
 *	UNCOVERS	the batch takes gfn 0's slot away; without that it puts
 *			another slot there, with other memory.  Other gfns get
 *			other slots in either case.
 *	CREATES		the last gfn has no slot before
 *	CAN_NEST	kvm_amd or kvm_intel nested=1
 *	MAY_PARK	vCPUs can be parked
 *	LAST_LAYOUT	how many commits there are, one from each layout to the next
 *
 * Each #ifdef beyond those is a mutation of README.md's table: an order that the
 * protocol must not have.
 */

#ifndef LAST_LAYOUT
#define LAST_LAYOUT 1
#endif

/* Has this gfn a slot in this layout? */
#ifdef UNCOVERS
#define IS_HOLE(layout, gfn) ((layout) == 1 && (gfn) == 0)
#else
#define IS_HOLE(layout, gfn) false
#endif
#ifdef CREATES
#define COVERED(layout, gfn) (!IS_HOLE(layout, gfn) && ((layout) != 0 || (gfn) != GFNS - 1))
#else
#define COVERED(layout, gfn) (!IS_HOLE(layout, gfn))
#endif

#define SLOT_IN(layout, gfn) (COVERED(layout, gfn) -> SLOT(layout, gfn) : NONE)

#if defined(UNCOVERS) && defined(CAN_NEST) && !defined(NO_TOMBSTONES)
#define TOMBSTONES
#endif

byte layout;			/* what the commit finds */
bool committed;			/* the last commit has returned */
bool parked;			/* all vCPUs are */

/*
 * Steps 3 and 10.  @uncovered is what stands where the new layout has no slot.
 * All that is old leaves before the first new slot comes.
 */
inline update_inactive(set, uncovered)
{
	set = 1 - memslots;
	tree(set, 0) = NONE;
#if GFNS > 1
	tree(set, 1) = NONE;
#endif
	tree(set, 0) = (COVERED(layout + 1, 0) -> SLOT(layout + 1, 0) : uncovered);
#if GFNS > 1
	tree(set, 1) = SLOT_IN(layout + 1, 1)
#endif
}

/* Step 3: nobody can see this set yet, but @last_used_slot names what it named last time. */
inline build(set)
{
#ifdef TOMBSTONES
	update_inactive(set, (parked -> NONE : TOMBSTONE));
#else
	update_inactive(set, NONE);
#endif
#ifndef BUILD_KEEPS_LAST_USED
	last_used_slot[set] = NONE
#endif
}

/* Step 9, and the end of step 10, which takes the tombstones out of the set that had them. */
inline mirror(set)
{
	update_inactive(set, NONE);
#ifndef MIRROR_KEEPS_LAST_USED
	last_used_slot[set] = NONE
#endif
}

/* Steps 4 and 8.  In range is the whole of every slot that changes, before and after. */
inline fence()
{
#ifdef FENCE_SPARES_CREATED
	atomic { invalidate_begin(BIT(MEMORY_OF(layout))) }
#else
	atomic { invalidate_begin(BIT(MEMORY_OF(layout)) | BIT(MEMORY_OF(layout + 1))) }
#endif
}

inline unfence()
{
	atomic { invalidate_end() }
}

/* Where the generation's number is raised: at the end, and once. */
#if defined(INTERMEDIATE_EQUALS_FINAL) || defined(NO_IN_PROGRESS_FLAG)
#define EARLY 1
#define LATE 0
#elif defined(GENERATION_NOT_RAISED)
#define EARLY 0
#define LATE 0
#else
#define EARLY 0
#define LATE 1
#endif

#ifdef NO_IN_PROGRESS_FLAG
#define IN_PROGRESS 0
#else
#define IN_PROGRESS UPDATE_IN_PROGRESS
#endif

/*
 * Step 6.  @flags tell this publication's generation from all others, until the
 * number itself is raised.  Address space 0 is published as well, with what it has, if
 * it is not the one that changes.
 */
inline publish(set, early, flags)
{
	set = 1 - memslots;
	generation[set] = NUMBER(generation[memslots]) + early | flags;
	atomic {					/* mn_invalidate_lock */
#ifndef NOTIFIERS_NOT_AWAITED
		mn_active_invalidate_count == 0;
#endif
		publish_space_0(early, flags);
		memslots = set
	}
}

/* Step 11.  Between kvm_arch_memslots_updated() and the new number the old flags stand. */
inline update()
{
	memslots_updated(NUMBER(generation[memslots]) + LATE);
	atomic {
		end_space_0(LATE);
		generation[memslots] = NUMBER(generation[memslots]) + LATE
	}
}

/* Step 12's end */
inline free_old()
{
	d_step {
		if
		:: COVERED(layout, 0) -> freed = freed | BIT(SLOT(layout, 0))
		:: else
		fi;
#if GFNS > 1
		if
		:: COVERED(layout, 1) -> freed = freed | BIT(SLOT(layout, 1))
		:: else
		fi
#endif
	}
}

inline free_tombstone()
{
	freed = freed | BIT(TOMBSTONE)
}

/*
 * Step 10, after the first grace period.  From here no vCPU passes the check of a
 * root's gfn that is uncovered; one that passed it before has made its root, and that
 * is accounted to the tombstone.
 */
inline republish(set)
{
#if !defined(LATE_ROOT_BEFORE_WAIT) && !defined(LATE_ROOT_AFTER_PUBLISH) && !defined(LATE_ROOT_IGNORED)
	zap_late_root();
#endif
	mutex_lock(slots_arch_lock);
#ifdef SAME_GENERATION_TWICE
	publish(set, 0, IN_PROGRESS | FIRST_OF_TWO);
#else
	publish(set, 0, IN_PROGRESS);
#endif
	mutex_unlock(slots_arch_lock);
#ifdef LATE_ROOT_AFTER_PUBLISH
	zap_late_root();
#endif
#ifdef TOMBSTONE_FREED_BEFORE_WAIT
	free_tombstone();
#endif
#ifndef ONE_GRACE_PERIOD
	synchronize_srcu();				/* rewait */
#endif
	mirror(set)
}

/*
 * A model brings what happens to its translations and bitmaps: gate() takes
 * slots_arch_lock, zap(), zap_late_root(), carry(), and what KVM keeps by generation.
 */
inline commit_apply(set)
{
	mutex_lock(slots_lock);
	gate();						/* park, plan, prepare: 1, 2 */
#if defined(ONE_PUBLICATION_PER_CHANGE) || defined(DELETE_THEN_CREATE)
	/* As if the changes came one after the other, each with its own grace period. */
	set = 1 - memslots;
#ifdef DELETE_THEN_CREATE
	tree(set, 0) = NONE;
#else
	tree(set, 0) = SLOT(layout + 1, 0);
#endif
	publish(set, 0, IN_PROGRESS);
	mutex_unlock(slots_arch_lock);
	synchronize_srcu();
	update();
	tree(1 - memslots, 0) = tree(memslots, 0);
	mutex_lock(slots_arch_lock);
#endif

	build(set);					/* 3 */
#if !defined(NO_FENCE) && !defined(FENCE_AFTER_ZAP)
	fence();					/* 4 */
#endif
#if !defined(ZAP_AFTER_PUBLISH) && !defined(ZAP_AFTER_WAIT)
	zap();						/* 5 */
#endif
#ifdef FENCE_AFTER_ZAP
	fence();
#endif
#ifdef TOMBSTONES
	publish(set, EARLY, IN_PROGRESS | FIRST_OF_TWO);	/* 6, with tombstones */
#else
	publish(set, EARLY, IN_PROGRESS);			/* 6 */
#endif
	/* A reader may wait for it inside the section that step 7 waits for: locks.pml. */
	mutex_unlock(slots_arch_lock);
#ifdef ZAP_AFTER_PUBLISH
	zap();
#endif
#ifdef UNFENCE_BEFORE_WAIT
	unfence();
#endif
#ifdef LATE_ROOT_BEFORE_WAIT
	zap_late_root();
#endif
#ifdef MIRROR_BEFORE_WAIT
	mirror(set);
#endif
#ifdef CARRY_BEFORE_WAIT
	carry();
#endif
#ifdef FREE_BEFORE_WAIT
	free_old();
#endif
	synchronize_srcu();				/* 7: wait */
#ifdef ZAP_AFTER_WAIT
	zap();
#endif
#if !defined(NO_FENCE) && !defined(UNFENCE_BEFORE_WAIT)
	unfence();					/* 8 */
#endif
#ifndef MIRROR_BEFORE_WAIT
	mirror(set);					/* 9 */
#endif
#ifdef TOMBSTONES
#ifdef MAY_PARK
	if
	:: parked
	:: else -> republish(set)			/* 10 */
	fi;
#else
	republish(set);					/* 10 */
#endif
#endif
	update();					/* 11 */
#ifndef CARRY_BEFORE_WAIT
	carry();					/* 12: finish */
#endif
#ifndef FREE_BEFORE_WAIT
	free_old();
#endif
#ifdef TOMBSTONES
#ifndef TOMBSTONE_FREED_BEFORE_WAIT
	free_tombstone();
#endif
#endif
	layout++;
	if
	:: layout == LAST_LAYOUT -> committed = true
	:: else
	fi;
	mutex_unlock(slots_lock)
}

/*
 * KVM's own ioctl, between the commits or before or after them: it creates a
 * slot elsewhere.  What it does to the sets: it fills the inactive one, which it
 * takes as it finds it, and swaps.
 */
inline kvm_set_memory_region(set)
{
	mutex_lock(slots_lock);
	mutex_lock(slots_arch_lock);
	set = 1 - memslots;
	generation[set] = generation[memslots] | UPDATE_IN_PROGRESS;
	atomic { mn_active_invalidate_count == 0 -> memslots = set };
	mutex_unlock(slots_arch_lock);
	synchronize_srcu();
	generation[set] = (generation[set] & ~UPDATE_IN_PROGRESS) + 1;
	mutex_unlock(slots_lock)
}
