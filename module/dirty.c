// SPDX-License-Identifier: GPL-2.0
#include "dirty.h"

#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/sched.h>

/* One run of pages whose dirty bits pass from an old bitmap to a new one */
struct passage {
	struct kvm_memory_slot *from;
	struct kvm_memory_slot *to;
	unsigned long from_page;
	unsigned long to_page;
	unsigned long npages;
};

/**
 * dirty_alloc - give a new slot its bitmap, if it needs one
 * @kvm: the VM
 * @slot: a new slot that nobody sees yet
 *
 * All set where the VM asked for that (KVM_DIRTY_LOG_INITIALLY_SET), else
 * clear.  Twice the size, as KVM_GET_DIRTY_LOG uses the second half.
 *
 * Return: 0 or -ENOMEM.
 */
int dirty_alloc(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	if (!(slot->flags & KVM_MEM_LOG_DIRTY_PAGES) || kvm->dirty_ring_size)
		return 0;

	slot->dirty_bitmap = __vcalloc(2, kvm_dirty_bitmap_bytes(slot), GFP_KERNEL_ACCOUNT);
	if (!slot->dirty_bitmap)
		return -ENOMEM;
	if (kvm_dirty_log_manual_protect_and_init_set(kvm))
		bitmap_set(slot->dirty_bitmap, 0, slot->npages);
	return 0;
}

void dirty_free(struct kvm_memory_slot *slot)
{
	kvfree(slot->dirty_bitmap);
	slot->dirty_bitmap = NULL;
}

/* Does a segment's dirty log survive?  Then say from where to where. */
static bool kept_passage(const struct plan *plan, const struct plan_segment *segment,
			 struct passage *passage)
{
	if (!segment->kept)
		return false;
	passage->from = plan->change[segment->before].before.slot;
	passage->to = plan->change[segment->after].after.slot;
	passage->from_page = segment->gfn - passage->from->base_gfn;
	passage->to_page = segment->gfn - passage->to->base_gfn;
	passage->npages = segment->npages;
	return passage->from->dirty_bitmap && passage->to->dirty_bitmap;
}

/* Like KVM's own move: the log goes with the slot, page by page. */
static bool moved_passage(const struct plan_change *change, struct passage *passage)
{
	if (change->kind != PLAN_MOVE)
		return false;
	*passage = (struct passage){
		.from = change->before.slot,
		.to = change->after.slot,
		.npages = change->after.npages,
	};
	return passage->from->dirty_bitmap && passage->to->dirty_bitmap;
}

static void unset(const struct passage *passage)
{
	bitmap_clear(passage->to->dirty_bitmap, passage->to_page, passage->npages);
}

/**
 * dirty_unset_kept - clear what dirty_alloc() set for pages that have a log
 * @plan: what changes; nobody sees the new slots yet
 */
void dirty_unset_kept(const struct plan *plan)
{
	struct passage passage;
	u32 i;

	for (i = 0; i < plan->segments; i++)
		if (kept_passage(plan, &plan->segment[i], &passage))
			unset(&passage);
	for (i = 0; i < plan->changes; i++)
		if (moved_passage(&plan->change[i], &passage))
			unset(&passage);
}

/* The @n bits from bit @at on, @n at most BITS_PER_LONG */
static unsigned long bits_at(const unsigned long *map, unsigned long at, unsigned long n)
{
	unsigned long shift = at % BITS_PER_LONG;
	unsigned long bits = map[BIT_WORD(at)] >> shift;

	if (shift + n > BITS_PER_LONG)
		bits |= map[BIT_WORD(at) + 1] << (BITS_PER_LONG - shift);
	return bits & GENMASK(n - 1, 0);
}

/*
 * vCPUs may be setting bits of @to at this moment, so each word of it gets one
 * atomic OR.  Nobody sets any of @from.
 */
static void carry(const struct passage *passage)
{
	unsigned long done, n;

	for (done = 0; done < passage->npages; done += n) {
		unsigned long to = passage->to_page + done, shift = to % BITS_PER_LONG;
		unsigned long bits;

		n = min(passage->npages - done, BITS_PER_LONG - shift);
		bits = bits_at(passage->from->dirty_bitmap, passage->from_page + done, n);
		if (bits)
			atomic_long_or(bits << shift,
				       (atomic_long_t *)&passage->to->dirty_bitmap[BIT_WORD(to)]);
		cond_resched();
	}
}

/**
 * dirty_carry - carry the dirty bits of pages that keep their host address
 * @plan: what changes; nobody sees the old slots any more
 *
 * Only after the grace period: until then a vCPU that found the old slot may
 * still set bits there.  The log cannot be read meanwhile: that takes
 * slots_lock.
 */
void dirty_carry(const struct plan *plan)
{
	struct passage passage;
	u32 i;

	for (i = 0; i < plan->segments; i++)
		if (kept_passage(plan, &plan->segment[i], &passage))
			carry(&passage);
	for (i = 0; i < plan->changes; i++)
		if (moved_passage(&plan->change[i], &passage))
			carry(&passage);
}
