/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What differs between kernels.  The rest of the module uses these names and
 * knows no version.
 */
#ifndef MEMSLOT_COMPAT_H
#define MEMSLOT_COMPAT_H

#include <linux/kprobes.h>
#include <linux/kvm_host.h>
#include <linux/mutex.h>
#include <linux/sched/task.h>

#include <asm/ibt.h>

#include "../kvm_internals.h"
#include "../plan.h"

/*
 * The true entry of a probed function: with indirect-branch tracking the probe
 * sits behind the ENDBR that a function begins with.
 */
static inline unsigned long compat_kprobe_entry(const struct kprobe *probe)
{
	unsigned long address = (unsigned long)probe->addr;

#ifdef CONFIG_X86_KERNEL_IBT
	if (is_endbr(*(u32 *)(address - ENDBR_INSN_SIZE)))
		address -= ENDBR_INSN_SIZE;
#endif
	return address;
}

static inline u32 compat_address_spaces(struct kvm *kvm)
{
	return KVM_ADDRESS_SPACE_NUM;
}

/* Does the MMU that needs no reverse maps serve this VM? */
static inline bool compat_tdp_mmu_enabled(struct kvm *kvm)
{
	return kvm->arch.tdp_mmu_enabled;
}

/* Can a guest become a hypervisor here?  Not: does its CPUID say so. */
static inline bool compat_can_nest(void)
{
	return memslot_kvm_cpu_caps[X86_FEATURE_SVM / 32] & BIT(X86_FEATURE_SVM % 32) ||
	       memslot_kvm_cpu_caps[X86_FEATURE_VMX / 32] & BIT(X86_FEATURE_VMX % 32);
}

/*
 * Encrypted VMs are not marked in struct kvm.  The vendor's hook for encrypted
 * regions answers ENOTTY for all others before it looks at the region, and
 * EINVAL here, for no region begins at this address.
 */
static inline bool compat_is_protected(struct kvm *kvm)
{
	struct kvm_enc_region nowhere = { .addr = ~0ULL, .size = ~0ULL };

	return memslot_kvm_x86_ops->mem_enc_unregister_region &&
	       memslot_kvm_x86_ops->mem_enc_unregister_region(kvm, &nowhere) != -ENOTTY;
}

/* Does anybody but KVM's own shadow MMU track pages of this VM? */
static inline bool compat_page_tracked(struct kvm *kvm)
{
	struct hlist_head *trackers = &kvm->arch.track_notifier_head.track_notifier_list;
	struct hlist_node *own = &kvm->arch.mmu_sp_tracker.node;
	bool others;

	read_lock(&kvm->mmu_lock);
	others = trackers->first != own || own->next;
	read_unlock(&kvm->mmu_lock);
	return others;
}

/* Does page-modification logging feed this VM's dirty logs? */
static inline bool compat_logs_in_hardware(struct kvm *kvm)
{
	return memslot_kvm_x86_ops->cpu_dirty_log_size;
}

static inline bool compat_slot_has_guest_memfd(const struct kvm_memory_slot *slot)
{
	return false;
}

/* Raise the fence.  Caller holds mmu_lock for write. */
static inline void compat_fence_raise(struct kvm *kvm, const struct plan *plan)
{
	internal(kvm_mmu_invalidate_begin)(kvm, plan->fence_hva.start, plan->fence_hva.end);
}

/* Drop the fence.  Caller holds mmu_lock for write. */
static inline void compat_fence_drop(struct kvm *kvm, const struct plan *plan)
{
	internal(kvm_mmu_invalidate_end)(kvm, plan->fence_hva.start, plan->fence_hva.end);
}

/*
 * Zap a range by the TDP MMU without letting go of mmu_lock.  @slot names the
 * address space only, as long as no rmaps are in use.  Returns whether TLBs
 * must be flushed.
 */
static inline bool compat_unmap(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t start,
				gfn_t end)
{
	struct kvm_gfn_range range = {
		.slot = slot,
		.start = start,
		.end = end,
		.may_block = false,
	};

	return internal(kvm_unmap_gfn_range)(kvm, &range);
}

/* Does flushing one slot's shadow pages flush the whole VM's? */
static inline bool compat_flush_takes_all(struct kvm *kvm)
{
	return true;
}

/* Bookkeeping that precedes kvm_arch_commit_memory_region(). */
static inline void compat_account(struct kvm *kvm, const struct kvm_memory_slot *old,
				  const struct kvm_memory_slot *new,
				  enum kvm_mr_change change)
{
	if (change == KVM_MR_DELETE)
		kvm->nr_memslot_pages -= old->npages;
	else if (change == KVM_MR_CREATE)
		kvm->nr_memslot_pages += new->npages;
}

/*
 * The task that holds @lock, with a reference, or NULL.  Its task_struct stays
 * valid under RCU: it was alive when it was seen as the owner.
 */
static inline struct task_struct *compat_mutex_owner(struct mutex *lock)
{
	struct task_struct *owner;

	rcu_read_lock();
	/* the low three bits are flags, see kernel/locking/mutex.h */
	owner = (struct task_struct *)(atomic_long_read(&lock->owner) & ~0x7L);
	if (owner)
		get_task_struct(owner);
	rcu_read_unlock();
	return owner;
}

/*
 * Tell lockdep that @lock, just taken by trylock, is one of many under @outer:
 * it keeps count of those instead of giving each one of its 48 places.
 */
static inline void compat_mutex_nest(struct mutex *lock, struct mutex *outer)
{
	lock_release(&lock->dep_map, _THIS_IP_);
	lock_acquire(&lock->dep_map, 0, 1, 0, 1, &outer->dep_map, _THIS_IP_);
}

#endif /* MEMSLOT_COMPAT_H */
