/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Dirty bits.  A logged slot is replaced by one with the same memory, in place
 * (a split, a merge: nothing is zapped), or at another gfn (MOVES_LOG), or goes,
 * and the commit hands its last bitmap back (HANDS_BACK).  vCPUs write meanwhile;
 * each write sets its bit a moment later.
 */
#ifdef HANDS_BACK
#define UNCOVERS
#endif
#include "kvm.pml"

#define VCPUS 2

byte dirty;			/* bits of slots: the page's bit in the slot's bitmap */
bool handed_back;
bool written;			/* since the bitmap was last read */
bool vcpu_mutex[VCPUS];

#if (defined(HANDS_BACK) || defined(MOVES_LOG)) && !defined(LOG_NOT_PARKED)
#define PARKS
#endif

inline gate()
{
#ifdef PARKS
	mutex_unlock(slots_lock);			/* vcpu->mutex comes before it */
	mutex_lock(vcpu_mutex[0]);
	mutex_lock(vcpu_mutex[1]);
	mutex_lock(slots_lock);
#endif
	mutex_lock(slots_arch_lock)
}

/* Step 12.  vCPUs set bits in the new bitmap already, so each bit is an atomic OR. */
inline carry()
{
#ifdef HANDS_BACK
	handed_back = (dirty & BIT(SLOT(0, 0))) != 0
#elif defined(CARRY_STORES)
	carried = dirty | (dirty & BIT(SLOT(0, 0)) -> BIT(SLOT(1, 0)) : 0);
	dirty = carried
#else
	carried = (dirty & BIT(SLOT(0, 0)) -> BIT(SLOT(1, 0)) : 0);
	dirty = dirty | carried
#endif
}

/* Memory that stays is not zapped. */
inline zap() { skip }
inline zap_late_root() { skip }
inline memslots_updated(number) { skip }
inline publish_space_0(early, flags) { skip }
inline end_space_0(late) { skip }

#include "commit.pml"

proctype commit()
{
	byte set, carried;

	commit_apply(set);
#ifdef PARKS
	mutex_unlock(vcpu_mutex[0]);
	mutex_unlock(vcpu_mutex[1])
#endif
}

/* gfn 0's slot; a slot that has moved is no longer there */
#ifdef MOVES_LOG
#define here(slot) (slot == SLOT(1, 0) -> NONE : slot)
#else
#define here(slot) (slot)
#endif

inline write_page()
{
	written = true
}

/* mark_page_dirty_in_slot() */
inline mark_page_dirty(slot)
{
	atomic {
		if
		:: slot != NONE ->
			use(slot);
			dirty = dirty | BIT(slot)
		:: else
		fi
	}
}

proctype vcpu(byte me)
{
	byte set, slot;
	byte cached, cached_generation;

	do
	:: mutex_lock(vcpu_mutex[me]);
		srcu_read_lock(me);
		kvm_vcpu_gfn_to_memslot(set, 0, slot, cached, cached_generation);
		if
		:: here(slot) == NONE -> goto out
		:: else
		fi;
		/* fast_page_fault(), make_spte(): the bit goes to the slot of the fault */
		if
		:: write_page();
			mark_page_dirty(slot)
		/* The emulator, and PML, whose buffer names gfns: another lookup tells whose bit it is. */
		:: write_page();
			kvm_vcpu_gfn_to_memslot(set, 0, slot, cached, cached_generation);
			mark_page_dirty(here(slot))
		fi;
out:		srcu_read_unlock(me);
		slot = NONE;
		set = 0;
		mutex_unlock(vcpu_mutex[me])
	od
}

init {
	atomic {
		tree(0, 0) = SLOT_IN(0, 0);
		tree(1, 0) = SLOT_IN(0, 0);
		run vcpu(0);
		run vcpu(1);
		run commit()
	};
	/* The bit may be late, but not later than the section in which the page was written. */
	atomic {
		committed && !srcu_readers ->
#ifdef HANDS_BACK
		must(no_dirty_bit_lost, !written || handed_back)
#else
		must(no_dirty_bit_lost, !written || (dirty & BIT(SLOT(1, 0))))
#endif
	}
}
