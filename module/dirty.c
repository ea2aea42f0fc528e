// SPDX-License-Identifier: GPL-2.0
#include "dirty.h"

#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/sched.h>

#include "gate.h"

/* Pages in a row whose dirty bits are carried from an old bitmap to a new one */
struct dirty_run {
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
	if (!(slot->flags & KVM_MEM_LOG_DIRTY_PAGES) || gate_has_dirty_ring(kvm))
		return 0;

	slot->dirty_bitmap = __vcalloc(2, kvm_dirty_bitmap_bytes(slot), GFP_KERNEL_ACCOUNT);
	if (!slot->dirty_bitmap)
		return -ENOMEM;
	/*
	 * KVM_ENABLE_CAP writes what is read here without any lock.  The bitmap is as
	 * either value has it, and KVM's own ioctl reads it the same way.
	 */
	if (data_race(kvm_dirty_log_manual_protect_and_init_set(kvm)))
		bitmap_set(slot->dirty_bitmap, 0, slot->npages);
	return 0;
}

void dirty_free(struct kvm_memory_slot *slot)
{
	kvfree(slot->dirty_bitmap);
	slot->dirty_bitmap = NULL;
}

/* Is the log of a segment's pages kept?  If so, @run says from where to where. */
static bool kept_run(const struct plan *plan, const struct plan_segment *segment,
		     struct dirty_run *run)
{
	if (!segment->kept)
		return false;
	run->from = plan->changes[segment->before].before.slot;
	run->to = plan->changes[segment->after].after.slot;
	run->from_page = segment->gfn - run->from->base_gfn;
	run->to_page = segment->gfn - run->to->base_gfn;
	run->npages = segment->npages;
	return run->from->dirty_bitmap && run->to->dirty_bitmap;
}

/* Like KVM's own move: the log goes with the slot, page by page. */
static bool moved_run(const struct plan_change *change, struct dirty_run *run)
{
	if (change->kind != PLAN_MOVE)
		return false;
	*run = (struct dirty_run){
		.from = change->before.slot,
		.to = change->after.slot,
		.npages = change->after.npages,
	};
	return run->from->dirty_bitmap && run->to->dirty_bitmap;
}

static void unset(const struct dirty_run *run)
{
	bitmap_clear(run->to->dirty_bitmap, run->to_page, run->npages);
}

/* Do @work for all pages of a plan whose log is kept. */
static void visit_runs(const struct plan *plan, void (*work)(const struct dirty_run *run))
{
	struct dirty_run run;
	u32 i;

	for (i = 0; i < plan->nr_segments; i++)
		if (kept_run(plan, &plan->segments[i], &run))
			work(&run);
	for (i = 0; i < plan->nr_changes; i++)
		if (moved_run(&plan->changes[i], &run))
			work(&run);
}

/**
 * dirty_unset_kept - clear what dirty_alloc() set for pages that have a log
 * @plan: what changes; nobody sees the new slots yet
 */
void dirty_unset_kept(const struct plan *plan)
{
	visit_runs(plan, unset);
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
static void carry(const struct dirty_run *run)
{
	unsigned long done, n;

	for (done = 0; done < run->npages; done += n) {
		unsigned long to = run->to_page + done, shift = to % BITS_PER_LONG;
		unsigned long bits;

		n = min(run->npages - done, BITS_PER_LONG - shift);
		bits = bits_at(run->from->dirty_bitmap, run->from_page + done, n);
		if (bits)
			atomic_long_or(bits << shift,
				       (atomic_long_t *)&run->to->dirty_bitmap[BIT_WORD(to)]);
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
	visit_runs(plan, carry);
}
