// SPDX-License-Identifier: GPL-2.0
/*
 * KVM's deletion of a slot publishes the slot as KVM_MEMSLOT_INVALID first, and
 * removes it only after a grace period.  The vCPU that allocates a VM's first
 * shadow root relies on that: it checks that the root's gfn is visible, waits for
 * slots_arch_lock, and then looks the slot up again without a check for NULL.
 *
 * A commit that uncovers memory does the same for all the ranges that it
 * uncovers at once.  Nobody can map memory through an invalid slot: a page fault
 * there is retried, and KVM's own accesses find no memory, as in the new layout.
 */
#include "tombstone.h"

#include <linux/mm.h>
#include <linux/sched/signal.h>

#include "kvm_internals.h"
#include "layout.h"

/*
 * Above the ids of all slots that userspace or KVM can name, so that no lookup by
 * id finds a tombstone; all of them have this one.
 */
#define TOMBSTONE_ID KVM_MEM_SLOTS_NUM

static bool is_uncovered(const struct plan_segment *segment)
{
	return segment->before != PLAN_NONE && segment->after == PLAN_NONE;
}

static void describe(struct tombstone *stone, const struct plan_segment *segment,
		     const struct plan_region *old)
{
	stone->change = segment->before;
	if (segment->npages == old->npages)
		stone->whole = old->slot;

	stone->slot.as_id = segment->address_space;
	stone->slot.id = TOMBSTONE_ID;
	stone->slot.flags = KVM_MEMSLOT_INVALID;
	stone->slot.base_gfn = segment->gfn;
	stone->slot.npages = segment->npages;
	/* no access uses it, but KVM judges huge pages by its alignment */
	stone->slot.userspace_addr = old->hva + ((segment->gfn - old->gfn) << PAGE_SHIFT);
}

/**
 * tombstones_alloc - make the tombstones that a plan needs
 * @tombstones: all zero; out, to be given to tombstones_free()
 * @plan: what changes
 *
 * Return: 0 or -ENOMEM.
 */
int tombstones_alloc(struct tombstones *tombstones, const struct plan *plan)
{
	u32 i;

	tombstones->stone = kvcalloc(plan->nr_uncovered, sizeof(*tombstones->stone),
				     GFP_KERNEL_ACCOUNT);
	if (!tombstones->stone)
		return -ENOMEM;
	for (i = 0; i < plan->nr_segments; i++) {
		const struct plan_segment *segment = &plan->segments[i];

		if (!is_uncovered(segment))
			continue;
		describe(&tombstones->stone[tombstones->nr++], segment,
			 &plan->changes[segment->before].before);
		cond_resched();
	}
	return 0;
}

/**
 * tombstones_prepare - give each tombstone the arrays that KVM keeps per slot
 * @kvm: the VM; the caller holds slots_arch_lock until the tombstones are published
 * @tombstones: the tombstones
 * @change: out, on error: the change to blame
 *
 * The first shadow root counts itself in the arrays of the slot that it finds, and
 * allocates those that are missing under slots_arch_lock.  Where an old slot goes
 * whole its arrays fit, so the two share them.
 *
 * Return: 0, -EINTR on a fatal signal, or the error of KVM's prepare hook.
 */
int tombstones_prepare(struct kvm *kvm, struct tombstones *tombstones, u32 *change)
{
	u32 i;
	int err;

	lockdep_assert_held(&kvm->slots_arch_lock);

	for (i = 0; i < tombstones->nr; i++) {
		struct tombstone *stone = &tombstones->stone[i];

		if (fatal_signal_pending(current))
			return -EINTR;
		if (stone->whole) {
			stone->slot.arch = stone->whole->arch;
		} else {
			err = internal(kvm_arch_prepare_memory_region)(kvm, NULL, &stone->slot,
								       KVM_MR_CREATE);
			if (err) {
				*change = stone->change;
				return err;
			}
		}
		stone->prepared = true;
		cond_resched();
	}
	return 0;
}

/**
 * tombstones_put_in - add the tombstones to sets of slots that nobody reads
 * @tombstones: the tombstones
 * @sets: the inactive set of each address space
 *
 * Not to the tree of host addresses: all that the ranges had mapped has been
 * zapped, so MMU notifiers have nothing to do there.
 */
void tombstones_put_in(struct tombstones *tombstones, struct kvm_memslots *sets[])
{
	u32 i;

	for (i = 0; i < tombstones->nr; i++) {
		struct kvm_memory_slot *slot = &tombstones->stone[i].slot;

		layout_link(sets[slot->as_id], slot);
		cond_resched();
	}
}

/**
 * tombstones_take_out - remove the tombstones from the sets they were put in
 * @tombstones: the tombstones
 * @sets: those sets, which nobody reads any more
 */
void tombstones_take_out(struct tombstones *tombstones, struct kvm_memslots *sets[])
{
	u32 i;

	for (i = 0; i < tombstones->nr; i++) {
		struct kvm_memory_slot *slot = &tombstones->stone[i].slot;

		layout_unlink(sets[slot->as_id], slot);
		cond_resched();
	}
}

/**
 * tombstones_return_arrays - let old slots own all that tombstones share with them
 * @tombstones: the tombstones; nobody can find one any more
 *
 * The first shadow root has added arrays to the tombstones if it came in between.
 */
void tombstones_return_arrays(struct tombstones *tombstones)
{
	u32 i;

	for (i = 0; i < tombstones->nr; i++) {
		if (tombstones->stone[i].whole)
			tombstones->stone[i].whole->arch = tombstones->stone[i].slot.arch;
		cond_resched();
	}
}

/**
 * tombstones_free - free the tombstones and what they do not share
 * @kvm: the VM
 * @tombstones: the tombstones, published and gone, or never published
 */
void tombstones_free(struct kvm *kvm, struct tombstones *tombstones)
{
	u32 i;

	for (i = 0; i < tombstones->nr; i++) {
		struct tombstone *stone = &tombstones->stone[i];

		if (stone->prepared && !stone->whole)
			internal(kvm_arch_free_memslot)(kvm, &stone->slot);
		cond_resched();
	}
	kvfree(tombstones->stone);
	*tombstones = (struct tombstones){};
}
