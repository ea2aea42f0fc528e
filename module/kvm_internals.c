// SPDX-License-Identifier: GPL-2.0
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "kvm_internals.h"

#include <linux/kallsyms.h>
#include <linux/kprobes.h>

#include "compat/compat.h"

#ifndef CONFIG_KPROBES
#error "memslot needs CONFIG_KPROBES: it finds kallsyms_lookup_name() with one"
#endif
#ifndef CONFIG_KALLSYMS
#error "memslot needs CONFIG_KALLSYMS: it looks KVM's functions up by name"
#endif
#ifndef CONFIG_KALLSYMS_ALL
#error "memslot needs CONFIG_KALLSYMS_ALL: it looks KVM's variables up by name"
#endif
#ifndef CONFIG_HAVE_STATIC_CALL
#error "memslot needs CONFIG_HAVE_STATIC_CALL: it calls KVM's functions with static_call()"
#endif
#ifdef CONFIG_PREEMPT_RT
#error "memslot does not do CONFIG_PREEMPT_RT: parking reads the owner of a struct mutex"
#endif

#define MEMSLOT_DEFINE(name) DEFINE_STATIC_CALL_NULL(memslot_##name, name);
MEMSLOT_KVM_FUNCTIONS(MEMSLOT_DEFINE)
#undef MEMSLOT_DEFINE

DEFINE_STATIC_CALL_NULL(memslot_kallsyms_lookup_name, kallsyms_lookup_name);

struct kvm_x86_ops *memslot_kvm_x86_ops;
u32 *memslot_kvm_cpu_caps;

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
	entry = compat_kprobe_entry(&probe);
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
	int err;

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

	memslot_kvm_x86_ops = look_up("kvm_x86_ops");
	memslot_kvm_cpu_caps = look_up("kvm_cpu_caps");
	if (!memslot_kvm_x86_ops || !memslot_kvm_cpu_caps)
		complete = false;
	return complete ? 0 : -ENOENT;
}
