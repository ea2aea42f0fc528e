/* SPDX-License-Identifier: GPL-2.0 */
/* The trees of one struct kvm_memslots. */
#ifndef MEMSLOT_LAYOUT_H
#define MEMSLOT_LAYOUT_H

#include <linux/kvm_host.h>

/* plan.h's view of a VM; reading it needs slots_lock */
struct plan_layout {
	struct kvm *kvm;
};

struct kvm_memslots *layout_inactive(struct kvm *kvm, int address_space);
void layout_take_out(struct kvm_memslots *slots, struct kvm_memory_slot *slot);
void layout_put_in(struct kvm_memslots *slots, struct kvm_memory_slot *slot);
void layout_forget_last_used(struct kvm_memslots *slots);

#endif /* MEMSLOT_LAYOUT_H */
