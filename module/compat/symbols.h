/* SPDX-License-Identifier: GPL-2.0 */
/* The functions and variables that are looked up at load, on each kernel. */
#ifndef MEMSLOT_COMPAT_SYMBOLS_H
#define MEMSLOT_COMPAT_SYMBOLS_H

#include <linux/version.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
#define MEMSLOT_FENCE_FUNCTIONS(f)		\
	f(kvm_mmu_invalidate_start)		\
	f(kvm_mmu_invalidate_range_add)		\
	f(kvm_mmu_invalidate_end)
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
#define MEMSLOT_FENCE_FUNCTIONS(f)		\
	f(kvm_mmu_invalidate_begin)		\
	f(kvm_mmu_invalidate_range_add)		\
	f(kvm_mmu_invalidate_end)
#else
#define MEMSLOT_FENCE_FUNCTIONS(f)		\
	f(kvm_mmu_invalidate_begin)		\
	f(kvm_mmu_invalidate_end)
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 17, 0)
#define MEMSLOT_ASSIGNMENT_FUNCTIONS(f) f(kvm_arch_has_assigned_device)
#else
#define MEMSLOT_ASSIGNMENT_FUNCTIONS(f)
#endif

/*
 * __SCT__kvm_x86_...: the trampoline through which KVM itself calls the vendor
 * module.  A direct call to it stays right when another vendor module is loaded.
 */
#define MEMSLOT_KVM_FUNCTIONS(f)			\
	f(kvm_arch_prepare_memory_region)		\
	f(kvm_arch_commit_memory_region)		\
	f(kvm_arch_flush_shadow_memslot)		\
	f(kvm_arch_memslots_updated)			\
	f(kvm_arch_free_memslot)			\
	f(kvm_arch_guest_memory_reclaimed)		\
	f(kvm_unmap_gfn_range)				\
	f(kvm_flush_remote_tlbs)			\
	f(file_is_kvm)					\
	f(kvm_get_running_vcpu)				\
	f(kvm_vcpu_mark_page_dirty)			\
	f(vcpu_load)					\
	f(vcpu_put)					\
	f(task_work_add)				\
	f(task_work_cancel_match)			\
	f(__SCT__kvm_x86_mem_enc_unregister_region)	\
	MEMSLOT_FENCE_FUNCTIONS(f)			\
	MEMSLOT_ASSIGNMENT_FUNCTIONS(f)

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
#define MEMSLOT_MMU_VARIABLES(v) v(tdp_mmu_enabled)
#else
#define MEMSLOT_MMU_VARIABLES(v)
#endif

#define MEMSLOT_KVM_VARIABLES(v)	\
	v(kvm_x86_ops)			\
	v(kvm_cpu_caps)			\
	MEMSLOT_MMU_VARIABLES(v)

#endif /* MEMSLOT_COMPAT_SYMBOLS_H */
