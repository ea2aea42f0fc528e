// SPDX-License-Identifier: GPL-2.0
#include "layout.h"

#include <linux/hashtable.h>
#include <linux/interval_tree.h>
#include <linux/rbtree.h>

#include "compat/compat.h"
#include "plan.h"

void layout_describe(struct kvm_memory_slot *slot, struct plan_region *region)
{
	*region = (struct plan_region){
		.address_space = slot->as_id,
		.id = slot->id,
		.flags = slot->flags & (KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY),
		.guest_memfd = compat_slot_has_guest_memfd(slot),
		.gfn = slot->base_gfn,
		.npages = slot->npages,
		.hva = slot->userspace_addr,
		.slot = slot,
	};
}

bool plan_layout_has_dirty_ring(const struct plan_layout *layout)
{
	return layout->dirty_ring;
}

bool plan_layout_find(const struct plan_layout *layout, u32 address_space, u32 id,
		      struct plan_region *region)
{
	struct kvm_memory_slot *slot;

	lockdep_assert_held(&layout->kvm->slots_lock);

	slot = id_to_memslot(__kvm_memslots(layout->kvm, address_space), id);
	if (slot)
		layout_describe(slot, region);
	return slot;
}

bool plan_layout_next(const struct plan_layout *layout, u32 address_space, u64 gfn, u64 end,
		      struct plan_region *region)
{
	struct kvm_memslots *slots = __kvm_memslots(layout->kvm, address_space);
	struct kvm_memslot_iter iter;

	lockdep_assert_held(&layout->kvm->slots_lock);

	kvm_for_each_memslot_in_gfn_range(&iter, slots, gfn, end) {
		layout_describe(iter.slot, region);
		return true;
	}
	return false;
}

/* The set that nobody reads; a change is prepared in it. */
struct kvm_memslots *layout_inactive(struct kvm *kvm, int address_space)
{
	int active = __kvm_memslots(kvm, address_space)->node_idx;

	return &kvm->__memslots[address_space][active ^ 1];
}

/* Remove a slot from a set's tree of guest addresses, and from its table of ids. */
void layout_unlink(struct kvm_memslots *slots, struct kvm_memory_slot *slot)
{
	int idx = slots->node_idx;

	hash_del(&slot->id_node[idx]);
	rb_erase(&slot->gfn_node[idx], &slots->gfn_tree);
}

void layout_take_out(struct kvm_memslots *slots, struct kvm_memory_slot *slot)
{
	interval_tree_remove(&slot->hva_node[slots->node_idx], &slots->hva_tree);
	layout_unlink(slots, slot);
}

/* Add a slot to a set's tree of guest addresses, and to its table of ids. */
void layout_link(struct kvm_memslots *slots, struct kvm_memory_slot *slot)
{
	int idx = slots->node_idx;
	struct rb_node **link = &slots->gfn_tree.rb_node;
	struct rb_node *parent = NULL;

	while (*link) {
		struct kvm_memory_slot *other;

		parent = *link;
		other = rb_entry(parent, struct kvm_memory_slot, gfn_node[idx]);
		link = slot->base_gfn < other->base_gfn ? &parent->rb_left :
							  &parent->rb_right;
	}
	rb_link_node(&slot->gfn_node[idx], parent, link);
	rb_insert_color(&slot->gfn_node[idx], &slots->gfn_tree);
	hash_add(slots->id_hash, &slot->id_node[idx], slot->id);
}

void layout_put_in(struct kvm_memslots *slots, struct kvm_memory_slot *slot)
{
	int idx = slots->node_idx;

	layout_link(slots, slot);
	slot->hva_node[idx].start = slot->userspace_addr;
	slot->hva_node[idx].last = slot->userspace_addr + (slot->npages << PAGE_SHIFT) - 1;
	interval_tree_insert(&slot->hva_node[idx], &slots->hva_tree);
}

/*
 * The last slot that a lookup found is tried first by the next one, without a
 * look into the tree: it must never name a slot that is not in the set.
 */
void layout_forget_last_used(struct kvm_memslots *slots)
{
	atomic_long_set(&slots->last_used_slot, 0);
}
