// SPDX-License-Identifier: GPL-2.0
#include "query.h"

#include <linux/rbtree.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/srcu.h>
#include <linux/uaccess.h>

#include "batch.h"
#include "compat/compat.h"
#include "gate.h"
#include "layout.h"
#include "plan.h"

static void describe(const struct plan_region *region, bool show_hva, struct memslot_entry *entry)
{
	*entry = (struct memslot_entry){
		.slot = region->id,
		.address_space = region->address_space,
		.flags = region->flags | (region->guest_memfd ? MEMSLOT_ENTRY_GUEST_MEMFD : 0),
		.guest_phys_addr = region->gfn << PAGE_SHIFT,
		.memory_size = region->npages << PAGE_SHIFT,
		.userspace_addr = show_hva ? region->hva : 0,
	};
}

/*
 * Counts all user slots, and describes as many as there is room for.  It is a reader
 * like any other, in an SRCU section and without the locks of the VM's owner: a process
 * that only looks must not be able to keep the owner from changing the VM, nor its vCPUs
 * parked.
 *
 * Returns false while a change is half done: its generation is not final yet, or
 * it has more than one and this is not the last.  When KVM deletes or moves a slot,
 * it first publishes a layout in which that slot is KVM_MEMSLOT_INVALID.  That
 * layout has a generation like any other, but nobody could commit anything for it,
 * and without that slot it may be one that never comes: the slot may be moved, or
 * stay because KVM is out of memory.
 */
static bool collect(struct kvm *kvm, struct memslot_query *reply, struct memslot_entry *entries,
		    u32 room)
{
	bool show_hva = kvm->mm == current->mm; /* KVM never changes a VM's mm */
	const struct kvm_memslots *slots;
	bool half_done;
	struct kvm_memory_slot *slot;
	struct plan_region region;
	struct rb_node *node;
	u64 generation;
	int srcu;

	srcu = srcu_read_lock(&kvm->srcu);
	/* One set, looked up once: it stays as it is until readers are gone. */
	slots = __kvm_memslots(kvm, reply->address_space);
	generation = READ_ONCE(slots->generation);
	half_done = generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS;
	reply->count = 0;
	layout_for_each_slot(slot, slots, node) {
		half_done |= slot->flags & KVM_MEMSLOT_INVALID;
		if (half_done)
			break;
		if (slot->id >= KVM_USER_MEM_SLOTS)
			continue;
		if (reply->count < room) {
			layout_describe(slot, &region);
			describe(&region, show_hva, &entries[reply->count]);
		}
		reply->count++;
	}
	srcu_read_unlock(&kvm->srcu, srcu);
	reply->generation = generation;
	return !half_done;
}

static int copy_out(const struct query_output *output, const struct memslot_entry *entries,
		    u32 count)
{
	size_t size = min_t(size_t, output->entry_size, sizeof(*entries));
	char __user *to = u64_to_user_ptr(output->entries);
	u32 i;

	if (output->entry_size == sizeof(*entries))
		return copy_to_user(to, entries, count * sizeof(*entries)) ? -EFAULT : 0;

	for (i = 0; i < count; i++, to += output->entry_size) {
		if (fatal_signal_pending(current))
			return -EINTR;
		if (copy_to_user(to, &entries[i], size) ||
		    clear_user(to + size, output->entry_size - size))
			return -EFAULT;
		cond_resched();
	}
	return 0;
}

/**
 * query_layout - tell the user slots of an address space and its generation
 * @kvm: the VM, which may be another process's
 * @output: where to
 * @reply: address_space in; count, reason and generation out
 *
 * The caller's memory may be slow (userfaultfd), so it is written without any
 * of KVM's locks.
 *
 * Return: 0, or a negative errno as described for MEMSLOT_IOC_QUERY.
 */
int query_layout(struct kvm *kvm, const struct query_output *output, struct memslot_query *reply)
{
	u32 room = min_t(u32, output->count, KVM_USER_MEM_SLOTS);
	struct memslot_entry *entries = NULL;
	int err = 0;

	if (reply->address_space >= compat_address_spaces(kvm)) {
		reply->reason = MEMSLOT_REASON_ADDRESS_SPACE;
		return -EINVAL;
	}
	if (room) {
		if (output->entry_size < BATCH_ENTRY_FIRST_SIZE || output->entry_size > PAGE_SIZE) {
			reply->reason = MEMSLOT_REASON_ARGUMENT;
			return output->entry_size > PAGE_SIZE ? -E2BIG : -EINVAL;
		}
		entries = kvmalloc_array(room, sizeof(*entries), GFP_KERNEL_ACCOUNT);
		if (!entries)
			return -ENOMEM;
	}

	while (!collect(kvm, reply, entries, room)) {
		if (fatal_signal_pending(current)) {
			err = -EINTR;
			goto out;
		}
		schedule_timeout_killable(1);
	}
	if (reply->count > room) {
		reply->reason = MEMSLOT_REASON_NO_ROOM;
		err = -ENOSPC;
	} else {
		err = copy_out(output, entries, reply->count);
	}
out:
	kvfree(entries);
	return err;
}
