/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Who finds which slot, and whether it is still there.  Two gfns that both
 * change in one batch; two commits, and KVM's own ioctl at any time.
 */
#define GFNS 2
#define LAST_LAYOUT 2
#include "kvm.pml"

inline gate()
{
	mutex_lock(slots_arch_lock)
}

/* memory.pml has translations, nested.pml roots, dirty.pml bits. */
inline zap() { skip }
inline zap_late_root() { skip }
inline carry() { skip }
inline memslots_updated(number) { skip }
inline publish_space_0(early, flags) { skip }
inline end_space_0(late) { skip }

#include "commit.pml"

proctype commits()
{
	byte set;

	do
	:: !committed -> commit_apply(set)
	:: else -> break
	od
}

proctype kvm_ioctl()
{
	byte set;

	kvm_set_memory_region(set)
}

/*
 * A hole is a gfn without a slot that has one before and after.  A mixture is a
 * slot of an older layout than one that the same reader has found before.
 */
#define layout_found(gfn, slot) ((slot) == NONE || (slot) == TOMBSTONE -> 1 : LAYOUT_OF(slot))

inline judge(gfn, slot, newest)
{
	atomic {
		must(whole_layouts, slot != NONE || !COVERED(1, gfn));
		must(whole_layouts, layout_found(gfn, slot) >= newest);
		newest = layout_found(gfn, slot);
		slot = NONE;
		gfn = 0;
		set = 0
	}
}

/* Which page, and how many in one section, is the guest's choice. */
inline some_gfn(gfn)
{
	if
	:: gfn = 0
	:: gfn = 1
	fi
}

/* Also stands for the caches of KVM's own accesses (kvmclock, steal time): gfn_to_hva_cache. */
proctype vcpu(byte me)
{
	byte set, gfn, slot, newest;
	byte cached, cached_generation;

	do
	:: srcu_read_lock(me);
		do
		:: some_gfn(gfn);
			kvm_vcpu_gfn_to_memslot(set, gfn, slot, cached, cached_generation);
			judge(gfn, slot, newest)
		:: break
		od;
		srcu_read_unlock(me)
	od
}

/* irqfd, gfn_to_hva(), the shadow MMU: by the set's cache */
proctype other_reader(byte me)
{
	byte set, gfn, slot, newest;

	do
	:: srcu_read_lock(me);
		do
		:: some_gfn(gfn);
			gfn_to_memslot(set, gfn, slot);
			judge(gfn, slot, newest)
		:: break
		od;
		srcu_read_unlock(me)
	od
}

init {
	atomic {
		tree(0, 0) = SLOT_IN(0, 0);
		tree(1, 0) = SLOT_IN(0, 0);
		tree(0, 1) = SLOT_IN(0, 1);
		tree(1, 1) = SLOT_IN(0, 1);
		run vcpu(0);
		run other_reader(1);
		run kvm_ioctl();
		run commits()
	}
}
