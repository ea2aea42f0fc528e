// SPDX-License-Identifier: GPL-2.0
#include "zap.h"

#include "compat/compat.h"

/*
 * KVM's own way of a slot deletion: by default drop all shadow pages, the vCPUs
 * reload their roots and refault the guest.  Or those of one slot only; which,
 * another thread may be changing just now, so look at what was done: when all
 * are dropped, their generation changes.
 */
static void zap_slots(struct kvm *kvm, const struct plan *plan)
{
	u8 generation = kvm->arch.mmu_valid_gen;
	u32 i;

	for (i = 0; i < plan->changes; i++) {
		const struct plan_change *change = &plan->change[i];

		if (change->kind != PLAN_DELETE && change->kind != PLAN_REPLACE &&
		    change->kind != PLAN_MOVE)
			continue;
		internal(kvm_arch_flush_shadow_memslot)(kvm, change->before.slot);
		if (kvm->arch.mmu_valid_gen != generation)
			return;
	}
}

/*
 * Most gfns that are zapped before others may have mmu_lock: some 3 ms if all
 * of them are mapped by 4 KiB pages.
 */
#define ZAP_CHUNK (1ULL << 16)

/* Let others in, but never while a zapped translation may be left in a TLB. */
static void zap_pause(struct kvm *kvm, bool *flush)
{
	if (!need_resched() && !rwlock_needbreak(&kvm->mmu_lock))
		return;
	if (*flush)
		internal(kvm_flush_remote_tlbs)(kvm);
	*flush = false;
	cond_resched_rwlock_write(&kvm->mmu_lock);
}

/*
 * Drop nothing but what changes.  A SPTE of the TDP MMU does not refer to its
 * slot, so those of gfns that keep host address and flags may stay.  Tables that
 * are empty then stay, too, until all are zapped, as in KVM without
 * KVM_X86_QUIRK_SLOT_ZAP_ALL; they are accounted to the VM's cgroup.
 *
 * KVM must not let go of mmu_lock inside a range: it would flush what it zapped
 * there and not what is still to be flushed of the ranges before.  An MMU
 * notifier that gets the lock then finds nothing mapped, does not flush either,
 * and the page is freed while a vCPU can still write to it.
 */
static void zap_ranges(struct kvm *kvm, const struct plan *plan)
{
	bool flush = false;
	u32 i;

	write_lock(&kvm->mmu_lock);
	for (i = 0; i < plan->zaps; i++) {
		const struct plan_zap *range = &plan->zap[i];
		struct kvm_memory_slot where = { .as_id = range->address_space };
		u64 end = range->gfn + range->npages;
		u64 gfn, next;

		for (gfn = range->gfn; gfn < end; gfn = next) {
			next = min(end, gfn + ZAP_CHUNK);
			flush |= compat_unmap(kvm, &where, gfn, next);
			zap_pause(kvm, &flush);
		}
	}
	if (flush)
		internal(kvm_flush_remote_tlbs)(kvm);
	write_unlock(&kvm->mmu_lock);
}

/**
 * zap - drop the translations that the new layout does not have
 * @kvm: the VM; the old layout is still published, and the fence is up
 * @plan: what changes
 *
 * When this returns no vCPU reaches memory of a gfn that is removed or
 * remapped, and none can until the fence is dropped.
 */
void zap(struct kvm *kvm, const struct plan *plan)
{
	lockdep_assert_held(&kvm->slots_lock);
	lockdep_assert_held(&kvm->slots_arch_lock);

	/*
	 * Shadow pages are accounted to their slots (rmaps, write tracking), so
	 * they must go with a slot even where its memory stays.
	 *
	 * With an assigned device KVM zaps everything on a slot's deletion, ever
	 * since zapping only the slot's pages was reverted in 2019 for a
	 * regression that nobody has explained.  So do we.
	 */
	if (!compat_tdp_mmu_enabled(kvm) || kvm->arch.shadow_root_allocated ||
	    compat_has_assigned_device(kvm) ||
	    (plan->uncovers && compat_page_tables_need_slots(kvm))) {
		if (plan->drops_slots)
			zap_slots(kvm, plan);
	} else if (plan->zaps) {
		zap_ranges(kvm, plan);
	}

	if (plan->drops_slots)
		internal(kvm_arch_guest_memory_reclaimed)(kvm);
}
