/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What KVM and the kernel do not export.
 *
 * Every function is looked up once, at load, and called through static_call():
 * the call sites become direct calls, so neither indirect-branch tracking nor
 * kCFI nor retpolines come into play.
 */
#ifndef MEMSLOT_KVM_INTERNALS_H
#define MEMSLOT_KVM_INTERNALS_H

#include <linux/kvm_host.h>
#include <linux/static_call.h>
#include <linux/task_work.h>

#include "compat/symbols.h"

#define MEMSLOT_DECLARE(name) DECLARE_STATIC_CALL(memslot_##name, name);
MEMSLOT_KVM_FUNCTIONS(MEMSLOT_DECLARE)
#undef MEMSLOT_DECLARE

/* internal(f)(args): call KVM's or the kernel's own f */
#define internal(name) static_call(memslot_##name)

/* Where KVM's own variables are */
extern struct kvm_x86_ops *memslot_kvm_x86_ops; /* table of vendor operations */
extern u32 *memslot_kvm_cpu_caps; /* CPUID words, as in boot_cpu_data.x86_capability */
extern bool *memslot_tdp_mmu_enabled; /* NULL where each VM has its own */

int kvm_internals_resolve(void);

#endif /* MEMSLOT_KVM_INTERNALS_H */
