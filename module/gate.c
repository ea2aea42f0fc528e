// SPDX-License-Identifier: GPL-2.0
#include "gate.h"

#include <linux/processor.h>

#include "compat/compat.h"

/* entries, plans and KVM's slots use the same flag bits */
static_assert(MEMSLOT_ENTRY_LOG_DIRTY_PAGES == KVM_MEM_LOG_DIRTY_PAGES);
static_assert(MEMSLOT_ENTRY_READONLY == KVM_MEM_READONLY);
static_assert(MEMSLOT_MAX_ADDRESS_SPACES >= COMPAT_MAX_ADDRESS_SPACES);

/* Widest guest physical address of the architecture */
#define GATE_GPA_BITS 52

/**
 * gate_rules - what entries for a VM may say
 * @kvm: the VM
 * @rules: out
 *
 * The VM's own limit to guest addresses is known to KVM's prepare hook only.
 */
void gate_rules(struct kvm *kvm, struct plan_rules *rules)
{
	*rules = (struct plan_rules){
		.max_slot = KVM_USER_MEM_SLOTS - 1,
		.address_spaces = compat_address_spaces(kvm),
		.entry_flags = MEMSLOT_ENTRY_LOG_DIRTY_PAGES | MEMSLOT_ENTRY_READONLY,
		.max_pages = KVM_MEM_MAX_NR_PAGES,
		.max_gfn = (1ULL << (GATE_GPA_BITS - PAGE_SHIFT)) - 1,
		.hva_end = TASK_SIZE_MAX,
		.dirty_ring = kvm->dirty_ring_size,
	};
}

/**
 * gate_tracked - does another module track the VM's pages?
 * @kvm: the VM
 * @reason: out, on error: enum memslot_reason
 *
 * Trackers change counts per slot under locks that a commit does not hold.  With
 * slots_arch_lock held the answer stays true until that is released; but on older
 * kernels trackers take mmu_lock only, and one can still come in between.
 *
 * Return: 0 or -EOPNOTSUPP.
 */
int gate_tracked(struct kvm *kvm, u32 *reason)
{
	if (!compat_page_tracked(kvm))
		return 0;
	*reason = MEMSLOT_REASON_PAGE_TRACK;
	return -EOPNOTSUPP;
}

/**
 * gate_refusal - is this a VM that the module does not change?
 * @kvm: the VM
 * @reason: out, on error: enum memslot_reason
 *
 * May take kvm->lock, so it is not to be called with slots_lock.
 *
 * Return: 0, -EIO for a dead VM, or -EOPNOTSUPP.
 */
int gate_refusal(struct kvm *kvm, u32 *reason)
{
	if (kvm->vm_dead || kvm->vm_bugged) {
		*reason = MEMSLOT_REASON_DEAD;
		return -EIO;
	}
	/* Asked each time: another VM's encryption can be moved into this one. */
	if (compat_is_protected(kvm)) {
		*reason = MEMSLOT_REASON_VM_TYPE;
		return -EOPNOTSUPP;
	}
	return gate_tracked(kvm, reason);
}

/**
 * gate_park_cause - why is the fence not enough for a plan?
 * @kvm: the VM
 * @plan: what is to change
 *
 * Only with slots_arch_lock held is the answer still true when it is used:
 * that lock guards the first nested root of a VM.
 *
 * Return: enum memslot_park_cause, MEMSLOT_PARK_NOT if the fence will do.
 */
u32 gate_park_cause(struct kvm *kvm, const struct plan *plan)
{
	/*
	 * KVM's emulator writes by one lookup of a slot and marks the page dirty by
	 * another, which may find the new layout.  And where the processor logs
	 * pages (PML), a vCPU keeps the last ones to itself until it leaves the guest,
	 * and then looks them up by gfn.  Pages that keep their gfn do not mind.
	 */
	if (plan->hands_back || plan->moves_log)
		return MEMSLOT_PARK_DIRTY_LOG;

	/* With all old slots still there nothing can refer to one that is gone. */
	if (!plan->drops_slots)
		return MEMSLOT_PARK_NOT;

	/*
	 * Shadow pages refer to their slots (rmaps, write tracking), and vCPUs
	 * make new ones without asking the fence (prefetch, sync).
	 */
	if (!compat_tdp_mmu_enabled(kvm))
		return MEMSLOT_PARK_SHADOW_PAGING;
	/* pairs with the release in KVM's mmu_first_shadow_root_alloc() */
	if (smp_load_acquire(&kvm->arch.shadow_root_allocated))
		return MEMSLOT_PARK_NESTED;

	/*
	 * A vCPU about to allocate its first nested root has seen that the
	 * root's gfn has a slot, waits for slots_arch_lock, and then looks the
	 * slot up again without a check for NULL.  It must still find one.
	 *
	 * A window stays that KVM has as well when it deletes or reflags a slot:
	 * that first root makes rmaps for the new slots only, and an MMU notifier
	 * that tests for young pages may still hold an old slot, without any.
	 */
	if (plan->uncovers && compat_can_nest())
		return MEMSLOT_PARK_UNCOVERS;
	return MEMSLOT_PARK_NOT;
}
