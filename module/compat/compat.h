/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What differs between kernels.  The rest of the module uses these names and
 * knows no version.
 */
#ifndef MEMSLOT_COMPAT_H
#define MEMSLOT_COMPAT_H

#include <linux/kvm_host.h>
#include <linux/mm.h>
#include <linux/srcu.h>
#include <linux/version.h>

#include "../kvm_internals.h"
#include "../plan.h"

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
#define COMPAT_MAX_ADDRESS_SPACES KVM_MAX_NR_ADDRESS_SPACES
#else
#define COMPAT_MAX_ADDRESS_SPACES KVM_ADDRESS_SPACE_NUM
#endif

static inline u32 compat_address_spaces(struct kvm *kvm)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	return kvm_arch_nr_memslot_as_ids(kvm);
#else
	return KVM_ADDRESS_SPACE_NUM;
#endif
}

/*
 * Does the MMU that needs no reverse maps serve this VM?  Set when the VM was made, or
 * when KVM's vendor module was loaded.
 */
static inline bool compat_tdp_mmu_enabled(struct kvm *kvm)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	return *memslot_tdp_mmu_enabled;
#else
	return kvm->arch.tdp_mmu_enabled;
#endif
}

/* Is the VM of another type than KVM's default?  A VM's type never changes. */
static inline bool compat_has_other_type(struct kvm *kvm)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	return kvm->arch.vm_type != KVM_X86_DEFAULT_VM;
#else
	return false;
#endif
}

/*
 * Does anybody but KVM's own shadow MMU track pages of this VM?  Since Linux 6.9
 * also: has anybody done so?  That is set under slots_arch_lock before the first
 * tracker is in the list, and for good: the next one takes no lock that we have.
 */
static inline bool compat_page_tracked(struct kvm *kvm)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
	struct hlist_head *trackers = &kvm->arch.track_notifier_head.track_notifier_list;
	struct hlist_node *own = &kvm->arch.mmu_sp_tracker.node;

	/* No lock: nothing but addresses is compared, and @own is the VM's. */
	return READ_ONCE(trackers->first) != own || READ_ONCE(own->next);
#elif !defined(CONFIG_KVM_EXTERNAL_WRITE_TRACKING)
	return false;
#elif LINUX_VERSION_CODE < KERNEL_VERSION(6, 9, 0)
	return !hlist_empty(&kvm->arch.track_notifier_head.track_notifier_list);
#else
	/* pairs with the release in KVM's kvm_enable_external_write_tracking() */
	return smp_load_acquire(&kvm->arch.external_write_tracking_enabled);
#endif
}

static inline bool compat_slot_has_guest_memfd(const struct kvm_memory_slot *slot)
{
#ifdef KVM_MEM_GUEST_MEMFD
	return slot->flags & KVM_MEM_GUEST_MEMFD;
#else
	return false;
#endif
}

/*
 * Raise the fence.  Caller holds mmu_lock for write, and must not let go of it
 * between what is done here: a page fault would find no range.
 */
static inline void compat_fence_raise(struct kvm *kvm, const struct plan *plan)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
	internal(kvm_mmu_invalidate_start)(kvm);
	internal(kvm_mmu_invalidate_range_add)(kvm, plan->fence_gfn.start, plan->fence_gfn.end);
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	internal(kvm_mmu_invalidate_begin)(kvm);
	internal(kvm_mmu_invalidate_range_add)(kvm, plan->fence_gfn.start, plan->fence_gfn.end);
#else
	internal(kvm_mmu_invalidate_begin)(kvm, plan->fence_hva.start, plan->fence_hva.end);
#endif
}

/* Drop the fence.  Caller holds mmu_lock for write. */
static inline void compat_fence_drop(struct kvm *kvm, const struct plan *plan)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	internal(kvm_mmu_invalidate_end)(kvm);
#else
	internal(kvm_mmu_invalidate_end)(kvm, plan->fence_hva.start, plan->fence_hva.end);
#endif
}

/*
 * Does KVM zap everything when a slot goes, for there is a device?  Newer
 * kernels do not ask: they zap everything for any VM, or a slot only for one
 * that wants it so (KVM_X86_QUIRK_SLOT_ZAP_ALL).  What tells there is that
 * userspace has told KVM of its VFIO devices, or that interrupts bypass KVM.
 */
static inline bool compat_has_assigned_device(struct kvm *kvm)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 17, 0)
	return internal(kvm_arch_has_assigned_device)(kvm);
#else
	bool found = READ_ONCE(kvm->arch.nr_possible_bypass_irqs);
	struct kvm_device *device;

	rcu_read_lock();
	list_for_each_entry_rcu(device, &kvm->devices, vm_node)
		found |= !strcmp(device->ops->name, "kvm-vfio");
	rcu_read_unlock();
	return found;
#endif
}

/*
 * Must the page tables of gfns without a slot go, too?  The worker that makes
 * huge pages of those again that were split against the iTLB multihit erratum
 * looks their slots up, and warns where there is none.
 */
static inline bool compat_page_tables_need_slots(struct kvm *kvm)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
	return READ_ONCE(kvm->stat.nx_lpage_splits);
#else
	return false;
#endif
}

/* How often a CPU has begun and ended an SRCU section, with index @i */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 15, 0)
#define COMPAT_SRCU_BEGUN(data, i) atomic_long_read(&(data)->srcu_ctrs[i].srcu_locks)
#define COMPAT_SRCU_ENDED(data, i) atomic_long_read(&(data)->srcu_ctrs[i].srcu_unlocks)
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
#define COMPAT_SRCU_BEGUN(data, i) atomic_long_read(&(data)->srcu_lock_count[i])
#define COMPAT_SRCU_ENDED(data, i) atomic_long_read(&(data)->srcu_unlock_count[i])
#else
#define COMPAT_SRCU_BEGUN(data, i) READ_ONCE((data)->srcu_lock_count[i])
#define COMPAT_SRCU_ENDED(data, i) READ_ONCE((data)->srcu_unlock_count[i])
#endif

/*
 * Do readers of @srcu leave memory barriers out (srcu_read_lock_fast())?  In no KVM that this
 * was tested with; a newer one might.
 */
static inline bool compat_srcu_has_fast_readers(struct srcu_struct *srcu)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 0, 0)
	return READ_ONCE(srcu->srcu_reader_flavor) & SRCU_READ_FLAVOR_SLOWGP;
#else
	return false;
#endif
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
/* KVM_PRE_FAULT_MEMORY does not let go of SRCU while a fault is to be retried. */
#define COMPAT_PRE_FAULT_MEMORY 1

/* Is the holder of @vcpu's mutex in KVM_RUN? */
static inline bool compat_in_kvm_run(struct kvm_vcpu *vcpu)
{
	return READ_ONCE(vcpu->wants_to_run);
}
#else
#define COMPAT_PRE_FAULT_MEMORY 0

static inline bool compat_in_kvm_run(struct kvm_vcpu *vcpu)
{
	return true;
}
#endif

/*
 * May a vCPU's page-modification log still have entries when KVM_RUN has returned?  KVM
 * flushes it in the vendor's exit handler.  Since Linux 6.12 that is left out where a
 * fast path ends KVM_RUN: HLT without a local APIC in the kernel, and HLT and WRMSR
 * while userspace steps through the guest.  Newer kernels call the handler first, and
 * so may updates of those in between: that the log is empty there costs a look at it.
 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0) && LINUX_VERSION_CODE < KERNEL_VERSION(7, 3, 0)
#define COMPAT_PML_IS_LATE 1
#else
#define COMPAT_PML_IS_LATE 0
#endif

/* Does the processor log the pages that this VM's guest dirties?  Set as that MMU's is. */
static inline bool compat_has_pml(struct kvm *kvm)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
	return kvm->arch.cpu_dirty_log_size;
#else
	return memslot_kvm_x86_ops->cpu_dirty_log_size;
#endif
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

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
	bool did = old && old->flags & KVM_MEM_LOG_DIRTY_PAGES;
	bool does = new && new->flags & KVM_MEM_LOG_DIRTY_PAGES;

	atomic_add(does - did, &kvm->nr_memslots_dirty_logging);
#endif
}

/* Pin user pages; caller holds mmap_lock. */
static inline long compat_pin_user_pages(unsigned long start, unsigned long n,
					 unsigned int flags, struct page **pages)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
	return pin_user_pages(start, n, flags, pages);
#else
	return pin_user_pages(start, n, flags, pages, NULL);
#endif
}

#endif /* MEMSLOT_COMPAT_H */
