// SPDX-License-Identifier: GPL-2.0
#include "gate.h"

#include <linux/processor.h>

#include "compat/compat.h"
#include "deadline.h"

/* entries, plans and KVM's slots use the same flag bits */
static_assert(MEMSLOT_ENTRY_LOG_DIRTY_PAGES == KVM_MEM_LOG_DIRTY_PAGES);
static_assert(MEMSLOT_ENTRY_READONLY == KVM_MEM_READONLY);
static_assert(MEMSLOT_MAX_ADDRESS_SPACES >= COMPAT_MAX_ADDRESS_SPACES);

/* Widest guest physical address of the architecture */
#define GATE_GPA_BITS 52

/*
 * Can a guest become a hypervisor here?  Not: does its CPUID say so.  KVM sets its
 * capabilities when the vendor module is loaded, which is before there are VMs.
 */
static bool can_nest(void)
{
	return memslot_kvm_cpu_caps[X86_FEATURE_SVM / 32] & BIT(X86_FEATURE_SVM % 32) ||
	       memslot_kvm_cpu_caps[X86_FEATURE_VMX / 32] & BIT(X86_FEATURE_VMX % 32);
}

/* Does is_protected() take kvm->lock?  It does where VMs can be encrypted. */
static bool asking_takes_kvm_lock(void)
{
	return memslot_kvm_cpu_caps[X86_FEATURE_SEV / 32] & BIT(X86_FEATURE_SEV % 32);
}

/*
 * VMs of another type than the default are encrypted, or may be.  So are those of the
 * default type that KVM_SEV_INIT was called for, and nothing in struct kvm marks them;
 * but the vendor's hook for encrypted regions answers ENOTTY for all others before it
 * looks at the region, and EINVAL here, for no region begins at this address.  KVM's
 * hooks do not change once the vendor module is loaded.
 */
static bool is_protected(struct kvm *kvm)
{
	struct kvm_enc_region nowhere = { .addr = ~0ULL, .size = ~0ULL };

	if (compat_has_other_type(kvm))
		return true;
	/* spares other machines the lock that the hook takes */
	if (!asking_takes_kvm_lock())
		return false;
	return memslot_kvm_x86_ops->mem_enc_unregister_region &&
	       internal(__SCT__kvm_x86_mem_enc_unregister_region)(kvm, &nowhere) != -ENOTTY;
}

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
	};
}

/**
 * gate_access - may the caller change a VM?
 * @kvm: the VM
 * @reason: out, on error: enum memslot_reason
 *
 * The same right as KVM's own ioctls give, and on the same conditions.
 *
 * Return: 0, or -EIO for a VM of another process, or a dead one.
 */
int gate_access(struct kvm *kvm, u32 *reason)
{
	/* KVM sets mm before the VM has a file, and never changes it. */
	if (kvm->mm != current->mm) {
		*reason = MEMSLOT_REASON_OWNER;
		return -EIO;
	}
	/*
	 * Any thread may set these at any time, with or without a lock, and none clears
	 * them.  So it is enough to look once, when an ioctl begins, as KVM's own do.
	 */
	if (READ_ONCE(kvm->vm_dead) || READ_ONCE(kvm->vm_bugged)) {
		*reason = MEMSLOT_REASON_DEAD;
		return -EIO;
	}
	return 0;
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
 * gate_admission - is this a VM that the module changes?
 * @kvm: the VM
 * @deadline: in jiffies, when to give up; NULL to wait as long as it takes
 * @reason: out, on error: enum memslot_reason
 *
 * May take kvm->lock, so it is not to be called with slots_lock.
 *
 * Return: 0, -EOPNOTSUPP, -EBUSY, or -EINTR.
 */
int gate_admission(struct kvm *kvm, const unsigned long *deadline, u32 *reason)
{
	int err;

	/*
	 * The vendor's hook takes kvm->lock by itself, and waits for it without a limit.
	 * So this takes the lock first, with a limit, and calls the hook as soon as it has
	 * let go of it.  A thread that takes the lock right in between makes the hook wait
	 * for as long as its own ioctl takes; those that may sleep for a page of user memory
	 * with the lock held are for VMs without vCPUs, or with Xen's interface.
	 */
	if (deadline && asking_takes_kvm_lock()) {
		err = deadline_lock(&kvm->lock, *deadline, reason);
		if (err)
			return err;
		mutex_unlock(&kvm->lock);
	}
	/* Asked each time: another VM's encryption can be moved into this one. */
	if (is_protected(kvm)) {
		*reason = MEMSLOT_REASON_VM_TYPE;
		return -EOPNOTSUPP;
	}
	return gate_tracked(kvm, reason);
}

/**
 * gate_has_shadow_root - has the VM ever allocated a shadow root?
 * @kvm: the VM
 *
 * With the TDP MMU that is the root of a nested guest.
 *
 * Return: whether.  True stays true; false does so while slots_arch_lock is held.
 */
bool gate_has_shadow_root(struct kvm *kvm)
{
	/* pairs with the release in KVM's mmu_first_shadow_root_alloc() */
	return smp_load_acquire(&kvm->arch.shadow_root_allocated);
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
	 * or longer (pml.c), and then looks them up by gfn.  Pages that keep their gfn do
	 * not mind, and what has no slot by then, or one without a log, is not looked at.
	 */
	if (gate_takes_log_away(plan))
		return MEMSLOT_PARK_DIRTY_LOG;

	/* With all old slots still there nothing can refer to one that is gone. */
	if (!plan->drops_slots)
		return MEMSLOT_PARK_NOT;

	/*
	 * Shadow pages and their SPTEs are accounted to slots (write tracking, rmaps),
	 * which must be found again when they go.  And the fence does not keep vCPUs
	 * from making more of them: a page fault asks it about the page that it maps,
	 * but not about the guest page tables that it shadows on the way, and the sync
	 * of an SPTE with its guest PTE does not ask at all.  (Prefetch does.)
	 */
	if (!compat_tdp_mmu_enabled(kvm))
		return MEMSLOT_PARK_SHADOW_PAGING;
	if (gate_has_shadow_root(kvm))
		return MEMSLOT_PARK_NESTED;
	return MEMSLOT_PARK_NOT;
}

/**
 * gate_needs_tombstones - must vCPUs still find slots that go?
 * @plan: what is to change, by a fence
 *
 * A vCPU about to allocate the VM's first shadow root has seen that the root's gfn
 * has a slot, waits for slots_arch_lock, and then looks the slot up again without
 * a check for NULL.  It must still find one.  Where memory is replaced it finds the
 * new slot, and that is enough: the vCPU allocates that slot's rmaps itself, under
 * slots_arch_lock, after publishing.
 *
 * A window stays that KVM has as well when it deletes or reflags a slot.  The first
 * shadow root allocates rmaps and the counts of write tracking for the slots that it
 * finds, which are the new ones, and from then on KVM takes it that all slots have them.
 * A thread that has found an old slot before then reads an array that is not there: an
 * MMU notifier that tests for young pages (rmaps), and a page fault that may write
 * (kvm_gfn_is_write_tracked(), asked once when the fault begins, and again when it
 * maps the page; with the fence up it does not come to that, so only where slots are
 * just reflagged).
 *
 * Return: whether.
 */
bool gate_needs_tombstones(const struct plan *plan)
{
	return plan->nr_uncovered && can_nest();
}
