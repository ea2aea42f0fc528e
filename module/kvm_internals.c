// SPDX-License-Identifier: GPL-2.0
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "kvm_internals.h"

#include <linux/kallsyms.h>
#include <linux/kprobes.h>

#include <asm/ibt.h>

#include "compat/tested.h"

#define MEMSLOT_DEFINE(name) DEFINE_STATIC_CALL_NULL(memslot_##name, name);
MEMSLOT_KVM_FUNCTIONS(MEMSLOT_DEFINE)
#undef MEMSLOT_DEFINE

DEFINE_STATIC_CALL_NULL(memslot_kallsyms_lookup_name, kallsyms_lookup_name);

struct kvm_x86_ops *memslot_kvm_x86_ops;
u32 *memslot_kvm_cpu_caps;
bool *memslot_tdp_mmu_enabled;

#define MEMSLOT_VARIABLE(name) { #name, (void **)&memslot_##name },
static const struct {
	const char *name;
	void **address;
} variables[] = { MEMSLOT_KVM_VARIABLES(MEMSLOT_VARIABLE) };

/*
 * The true entry of a probed function: with indirect-branch tracking the probe
 * sits behind the ENDBR that a function begins with.
 */
static unsigned long probed_entry(const struct kprobe *probe)
{
	unsigned long address = (unsigned long)probe->addr;

#ifdef CONFIG_X86_KERNEL_IBT
	u32 before = *(u32 *)(address - ENDBR_INSN_SIZE);

	/* the kernel overwrites an ENDBR that nothing jumps to */
	if (before == gen_endbr() || before == gen_endbr_poison())
		address -= ENDBR_INSN_SIZE;
#endif
	return address;
}

static int find_kallsyms_lookup_name(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	unsigned long entry;
	int err;

	err = register_kprobe(&probe);
	if (err) {
		pr_err("cannot find kallsyms_lookup_name: kprobe failed with %d\n", err);
		return err;
	}
	entry = probed_entry(&probe);
	unregister_kprobe(&probe);
	static_call_update(memslot_kallsyms_lookup_name, (typeof(kallsyms_lookup_name) *)entry);
	return 0;
}

static void *look_up(const char *name)
{
	void *address = (void *)static_call(memslot_kallsyms_lookup_name)(name);

	if (!address)
		pr_err("cannot find %s in this kernel\n", name);
	return address;
}

/**
 * kvm_internals_resolve - look all of KVM's internals up
 *
 * Names every symbol that is missing in the kernel log.
 *
 * Return: 0, or -ENOENT if one is missing.
 */
int kvm_internals_resolve(void)
{
	bool complete = true;
	int i, err;

	err = find_kallsyms_lookup_name();
	if (err)
		return err;

#define MEMSLOT_RESOLVE(name)						\
	do {								\
		typeof(name) *address = look_up(#name);			\
									\
		if (address)						\
			static_call_update(memslot_##name, address);	\
		else							\
			complete = false;				\
	} while (0);
	MEMSLOT_KVM_FUNCTIONS(MEMSLOT_RESOLVE)
#undef MEMSLOT_RESOLVE

	for (i = 0; i < ARRAY_SIZE(variables); i++) {
		*variables[i].address = look_up(variables[i].name);
		if (!*variables[i].address)
			complete = false;
	}
	return complete ? 0 : -ENOENT;
}
