/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The first nested root.  KVM checks that the root's gfn is visible, may wait
 * for slots_arch_lock, and looks the slot up a second time, without a check for
 * NULL, to account the shadow page to it; when the shadow page goes, it looks it
 * up a third time.  Meanwhile a commit takes the slot away (UNCOVERS) or puts
 * another one there.
 */
#include "kvm.pml"

#define VCPUS 2

bool shadow_root_allocated;	/* never cleared again */
byte arrays;			/* bits of slots: rmaps and write tracking are allocated */
byte accounted_to;		/* gfn 0 has a shadow page, and it counts in this slot */
bool vcpu_mutex[VCPUS];

/* account_shadowed() and unaccount_shadowed(): in the active set, by its cache, under mmu_lock */
inline slot_of_shadow_page(set, slot)
{
	set = memslots;
	slot = (last_used_slot[set] != NONE -> last_used_slot[set] : tree(set, 0));
	must(no_null_slot, slot != NONE);
	must(no_null_slot, slot == NONE || arrays & BIT(slot));
	use(slot);
	last_used_slot[set] = slot
}

/* kvm_arch_flush_shadow_memslot(): all shadow pages are unaccounted, also of roots in use */
inline zap_all(set, slot)
{
	atomic {
		if
		:: accounted_to != NONE ->
			slot_of_shadow_page(set, slot);
			must(accounts_balance, slot == accounted_to);
			accounted_to = NONE;
			slot = NONE
		:: else
		fi
	}
}

#ifdef UNCOVERS
#define NEW_SLOT TOMBSTONE
#else
#define NEW_SLOT SLOT(1, 0)
#endif

inline park()
{
	mutex_lock(vcpu_mutex[0]);
	mutex_lock(vcpu_mutex[1]);
	parked = true
}

/*
 * gate_park_cause()'s answer holds only with slots_arch_lock.  If it has changed
 * by then, all is given back: kvm->lock and vcpu->mutex come before slots_lock.
 */
inline gate()
{
#ifndef SHADOW_PAGES_NOT_PARKED
	if
	:: shadow_root_allocated ->
		mutex_unlock(slots_lock);
		park();
		mutex_lock(slots_lock)
	:: else
	fi;
#endif
	mutex_lock(slots_arch_lock);
#if !defined(GATE_ASKED_BEFORE_LOCK) && !defined(SHADOW_PAGES_NOT_PARKED)
	if
	:: !parked && shadow_root_allocated ->
		mutex_unlock(slots_arch_lock);
		mutex_unlock(slots_lock);
		park();
		mutex_lock(slots_lock);
		mutex_lock(slots_arch_lock)
	:: else
	fi;
#endif
	/* kvm_arch_prepare_memory_region(): once there are shadow roots, new slots get their arrays */
	if
	:: shadow_root_allocated -> arrays = arrays | BIT(NEW_SLOT)
	:: else
	fi
}

/* Other translations are memory.pml's. */
inline zap()
{
	zap_all(found_in, found)
}

inline zap_late_root()
{
	if
	:: shadow_root_allocated -> zap_all(found_in, found)
	:: else
	fi
}

/*
 * kvm_arch_free_memslot().  A tombstone shares its arrays with the slot that it
 * stands for; those that the first root has allocated are in the tombstone only.
 */
inline carry()
{
	d_step {
#if defined(UNCOVERS) && !defined(ARRAYS_NOT_COPIED_BACK)
		arrays = arrays & ~BIT(TOMBSTONE);
#endif
		arrays = arrays & ~BIT(SLOT(0, 0))
	}
}

inline memslots_updated(number) { skip }
inline publish_space_0(early, flags) { skip }
inline end_space_0(late) { skip }

#define MAY_PARK
#include "commit.pml"

proctype commit()
{
	byte set, found_in, found;

	commit_apply(set);
	vcpu_mutex[0] = vcpu_mutex[0] && !parked;
	vcpu_mutex[1] = vcpu_mutex[1] && !parked
}

proctype kvm_ioctl()
{
	byte set;

	kvm_set_memory_region(set)
}

/* mmu_first_shadow_root_alloc(): walks the active set by its hash of slot ids */
inline allocate_arrays(set)
{
	set = memslots;
#ifdef TOMBSTONE_HAS_NO_ID
	arrays = arrays | (tree(set, 0) == TOMBSTONE -> 0 : BIT(tree(set, 0)))
#else
	arrays = arrays | BIT(tree(set, 0))
#endif
}

proctype vcpu(byte me)
{
	byte set, slot;
	byte cached, cached_generation;

	do
	:: mutex_lock(vcpu_mutex[me]);
		srcu_read_lock(me);
		/* mmu_alloc_shadow_roots(): mmu_check_root() */
		kvm_vcpu_gfn_to_memslot(set, 0, slot, cached, cached_generation);
		if
		:: slot == NONE || slot == TOMBSTONE -> goto out	/* a triple fault */
		:: else
		fi;
		if
		:: shadow_root_allocated
		:: else ->
			mutex_lock(slots_arch_lock);
			if
			:: !shadow_root_allocated ->
				allocate_arrays(set);
				shadow_root_allocated = true
			:: else
			fi;
			mutex_unlock(slots_arch_lock)
		fi;
		atomic {				/* mmu_lock */
			if
			:: accounted_to == NONE ->
				slot_of_shadow_page(set, slot);
				accounted_to = slot
			:: else
			fi
		}
out:		atomic {
			srcu_read_unlock(me);
			set = 0;
			slot = NONE
		};
		mutex_unlock(vcpu_mutex[me])
	/* The guest has dropped the root, or KVM needs its page for another. */
	:: accounted_to != NONE -> mutex_lock(vcpu_mutex[me]);
		srcu_read_lock(me);
		zap_all(set, slot);
		srcu_read_unlock(me);
		mutex_unlock(vcpu_mutex[me])
	od
}

init {
	atomic {
		tree(0, 0) = SLOT_IN(0, 0);
		tree(1, 0) = SLOT_IN(0, 0);
		run vcpu(0);
		run vcpu(1);
		run kvm_ioctl();
		run commit()
	};
	atomic { committed -> must(nothing_leaks, !(arrays & freed)) }
}
