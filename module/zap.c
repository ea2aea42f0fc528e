// SPDX-License-Identifier: GPL-2.0
#include "zap.h"

#include "compat/compat.h"

/*
 * Let KVM zap a slot as it does when it deletes one.  By default it drops all shadow
 * pages, and the vCPUs reload their roots and fault the guest's memory in again; in a VM
 * without KVM_X86_QUIRK_SLOT_ZAP_ALL it drops the SPTEs of that slot only.  Another thread
 * may be switching that quirk off at this moment, so what KVM did is told from its
 * result: when it drops all shadow pages, it changes their generation.
 *
 * Returns whether KVM has dropped all shadow pages.
 */
static bool zap_slot(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	u8 generation = kvm->arch.mmu_valid_gen;

	internal(kvm_arch_flush_shadow_memslot)(kvm, slot);
	return kvm->arch.mmu_valid_gen != generation;
}

static void zap_slots(struct kvm *kvm, const struct plan *plan)
{
	u32 i;

	for (i = 0; i < plan->nr_changes; i++) {
		const struct plan_change *change = &plan->changes[i];

		if (change->kind != PLAN_DELETE && change->kind != PLAN_REPLACE &&
		    change->kind != PLAN_MOVE)
			continue;
		if (zap_slot(kvm, change->before.slot))
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
 * Zap a range by the TDP MMU without letting go of mmu_lock.  @slot names the
 * address space only, as long as no rmaps are in use; its id, 0, is a user's, so
 * that newer kernels do not take it for that of the APIC page.  Returns whether
 * TLBs must be flushed.
 */
static bool unmap(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t start, gfn_t end)
{
	struct kvm_gfn_range range = {
		.slot = slot,
		.start = start,
		.end = end,
		.may_block = false,
	};

	return internal(kvm_unmap_gfn_range)(kvm, &range);
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
	for (i = 0; i < plan->nr_zaps; i++) {
		const struct plan_zap *range = &plan->zaps[i];
		struct kvm_memory_slot where = { .as_id = range->address_space };
		u64 end = range->gfn + range->npages;
		u64 gfn, next;

		for (gfn = range->gfn; gfn < end; gfn = next) {
			next = min(end, gfn + ZAP_CHUNK);
			flush |= unmap(kvm, &where, gfn, next);
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
	    (plan->nr_uncovered && compat_page_tables_need_slots(kvm))) {
		if (plan->drops_slots)
			zap_slots(kvm, plan);
	} else if (plan->nr_zaps) {
		zap_ranges(kvm, plan);
	}

	if (plan->drops_slots)
		internal(kvm_arch_guest_memory_reclaimed)(kvm);
}

/**
 * zap_tombstones - drop the shadow pages that are counted in tombstones
 * @kvm: the VM, which has a shadow root by now
 * @tombstones: the tombstones, still published
 *
 * Those of the tombstones and not of the old slots, which nobody can look up any
 * more, and which have no rmaps.
 */
void zap_tombstones(struct kvm *kvm, struct tombstones *tombstones)
{
	u32 i;

	lockdep_assert_held(&kvm->slots_lock);

	for (i = 0; i < tombstones->nr; i++)
		if (zap_slot(kvm, &tombstones->stone[i].slot))
			return;
}
