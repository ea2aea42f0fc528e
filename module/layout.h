/* SPDX-License-Identifier: GPL-2.0 */
/* The trees of one struct kvm_memslots. */
#ifndef MEMSLOT_LAYOUT_H
#define MEMSLOT_LAYOUT_H

#include <linux/kvm_host.h>

#include "plan.h"

/* plan.h's view of a VM; reading it needs slots_lock */
struct plan_layout {
	struct kvm *kvm;
	bool dirty_ring; /* as it was when the plan was begun */
};

/*
 * Set in the generation of a layout that is published only to be followed by another
 * one of the same commit.  KVM compares generations as a whole, counts up from 0 and
 * keeps bit 63 for itself, so this one is free.
 */
#define LAYOUT_GEN_FIRST_OF_TWO BIT_ULL(62)

/*
 * The generation of a set without the marks of an update in progress: until the
 * update ends, that of the layout before.
 */
static inline u64 layout_generation(const struct kvm_memslots *slots)
{
	return READ_ONCE(slots->generation) &
	       ~(KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS | LAYOUT_GEN_FIRST_OF_TWO);
}

/* All slots of a set, by guest address */
#define layout_for_each_slot(slot, slots, node)				\
	for ((node) = rb_first(&(slots)->gfn_tree);			\
	     (node) && ((slot) = layout_slot_of(slots, node), true);	\
	     (node) = rb_next(node))

static inline struct kvm_memory_slot *layout_slot_of(const struct kvm_memslots *slots,
						     struct rb_node *node)
{
	return rb_entry(node, struct kvm_memory_slot, gfn_node[slots->node_idx]);
}

void layout_describe(struct kvm_memory_slot *slot, struct plan_region *region);

struct kvm_memslots *layout_inactive(struct kvm *kvm, int address_space);
void layout_take_out(struct kvm_memslots *slots, struct kvm_memory_slot *slot);
void layout_link(struct kvm_memslots *slots, struct kvm_memory_slot *slot);
void layout_unlink(struct kvm_memslots *slots, struct kvm_memory_slot *slot);
void layout_put_in(struct kvm_memslots *slots, struct kvm_memory_slot *slot);
void layout_forget_last_used(struct kvm_memslots *slots);

#endif /* MEMSLOT_LAYOUT_H */
