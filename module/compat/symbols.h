/* SPDX-License-Identifier: GPL-2.0 */
/* The functions that are looked up at load, for each kernel. */
#ifndef MEMSLOT_COMPAT_SYMBOLS_H
#define MEMSLOT_COMPAT_SYMBOLS_H

#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0) || \
	LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
#error "memslot supports Linux 6.1 only: see versions.mk"
#endif

#define MEMSLOT_KVM_FUNCTIONS(f)		\
	f(kvm_arch_prepare_memory_region)	\
	f(kvm_arch_commit_memory_region)	\
	f(kvm_arch_flush_shadow_memslot)	\
	f(kvm_arch_memslots_updated)		\
	f(kvm_arch_free_memslot)		\
	f(kvm_arch_guest_memory_reclaimed)	\
	f(kvm_arch_has_assigned_device)		\
	f(kvm_unmap_gfn_range)			\
	f(kvm_flush_remote_tlbs)		\
	f(kvm_mmu_invalidate_begin)		\
	f(kvm_mmu_invalidate_end)		\
	f(file_is_kvm)				\
	f(kvm_get_running_vcpu)			\
	f(task_work_add)			\
	f(task_work_cancel_match)

#endif /* MEMSLOT_COMPAT_SYMBOLS_H */
