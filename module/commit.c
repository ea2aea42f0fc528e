// SPDX-License-Identifier: GPL-2.0
/*
 * One batch, in eleven steps.  Everything that can fail comes before step 4;
 * from there on nothing does.
 *
 * Lock order: the file's lock, kvm->lock, vcpu->mutex (these two only when
 * parking), slots_lock, slots_arch_lock, then mn_invalidate_lock or mmu_lock.
 */
#include "commit.h"

#include <linux/ktime.h>
#include <linux/rcuwait.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "compat/compat.h"
#include "dirty.h"
#include "gate.h"
#include "harvest.h"
#include "layout.h"
#include "park.h"
#include "plan.h"
#include "readers.h"
#include "zap.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

struct commit {
	struct kvm *kvm;
	const struct plan_request *request;
	bool test_only;
	struct memslot_commit *reply;

	struct harvest harvest;
	struct park *park;
	u32 parked_for; /* enum memslot_park_cause; the layout may differ by now */
	/*
	 * change[].before.slot is KVM's, change[].after.slot is ours until step 6.
	 * Good for the layout that had these generations, and no other.
	 */
	struct plan plan;
	bool planned;
	struct plan_rules planned_by;
	u64 planned_for[MEMSLOT_MAX_ADDRESS_SPACES];
	struct plan_error error;
	u32 prepared; /* kvm_arch_prepare_memory_region() was called for so many */
	u64 fenced_at;
};

/* attempt() wants the vCPUs parked first; never seen outside this file */
#define NEEDS_PARKING 1

static void step_done(struct commit *c, enum memslot_step step)
{
	trace_memslot_commit_step(c->kvm, step);
}

static int blame(struct commit *c, u32 index, u32 reason, int err)
{
	c->error = (struct plan_error){ index, reason };
	return err;
}

/* The changes come in the order of the entries; those behind them have none. */
static int blame_change(struct commit *c, u32 i, u32 reason, int err)
{
	return blame(c, i < c->request->nr_entries ? i : MEMSLOT_NO_ENTRY, reason, err);
}

static bool changes(const struct plan_change *change)
{
	return change->kind != PLAN_NOTHING;
}

/* ---- Step 1: look up, plan, allocate ---- */

static bool changes_nothing(const struct plan *plan)
{
	return !plan->touched;
}

/*
 * Is this the layout that was planned for?  Each change gives KVM a new
 * generation; but dirty rings come without one.
 */
static bool planned_for_now(struct commit *c)
{
	u32 as;

	if (c->planned_by.dirty_ring != !!c->kvm->dirty_ring_size)
		return false;
	for (as = 0; as < compat_address_spaces(c->kvm); as++)
		if (c->planned_for[as] != __kvm_memslots(c->kvm, as)->generation)
			return false;
	return true;
}

/*
 * What was planned before the vCPUs were parked is still good, unless somebody
 * else got in between.
 */
static int make_plan(struct commit *c)
{
	const struct plan_layout layout = { .kvm = c->kvm };
	u32 as;
	int err;

	if (c->planned && planned_for_now(c))
		return 0;
	plan_free(&c->plan);
	c->planned = false;
	gate_rules(c->kvm, &c->planned_by);
	err = plan_build(&c->plan, c->request, &layout, &c->planned_by, &c->error);
	if (err)
		return err;
	for (as = 0; as < compat_address_spaces(c->kvm); as++)
		c->planned_for[as] = __kvm_memslots(c->kvm, as)->generation;
	c->planned = true;
	step_done(c, STEP_PLAN);
	return 0;
}

/* Is the layout still the one that the caller has seen, where the batch is about it? */
static int check_generation(struct commit *c)
{
	u32 named = c->request->replace_spaces;
	u32 i, as;

	if (!(c->reply->flags & MEMSLOT_COMMIT_IF_GENERATION))
		return 0;
	for (i = 0; i < c->request->nr_entries; i++)
		named |= BIT(c->request->entries[i].address_space);
	for (as = 0; as < compat_address_spaces(c->kvm); as++)
		if (named & BIT(as) &&
		    c->reply->if_generation[as] != __kvm_memslots(c->kvm, as)->generation)
			return blame(c, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_GENERATION, -ESTALE);
	return 0;
}

static int allocate_slots(struct commit *c)
{
	u32 i;

	for (i = 0; i < c->plan.changes; i++) {
		struct plan_change *change = &c->plan.change[i];
		struct plan_region *new = &change->after;
		struct kvm_memory_slot *slot;

		if (!changes(change) || !new->npages)
			continue;
		slot = kzalloc(sizeof(*slot), GFP_KERNEL_ACCOUNT);
		if (!slot)
			return blame_change(c, i, MEMSLOT_REASON_MEMORY, -ENOMEM);
		slot->as_id = new->address_space;
		slot->id = new->id;
		slot->flags = new->flags;
		slot->base_gfn = new->gfn;
		slot->npages = new->npages;
		slot->userspace_addr = new->hva;
		new->slot = slot;
	}
	return 0;
}

/* ---- Step 2: everything KVM allocates per slot ---- */

/* What KVM's hooks are told.  A replace is a create here and a delete later. */
static enum kvm_mr_change mr_change(const struct plan_change *change)
{
	switch (change->kind) {
	case PLAN_MOVE:
		return KVM_MR_MOVE;
	case PLAN_REFLAG:
		return KVM_MR_FLAGS_ONLY;
	case PLAN_DELETE:
		return KVM_MR_DELETE;
	default:
		return KVM_MR_CREATE;
	}
}

/*
 * prepare reads whether rmaps are in use and, for a reflag, copies old->arch:
 * both change under slots_arch_lock, so it must be held from here until the
 * new slots can be found by whoever takes it next.
 */
static int prepare(struct commit *c)
{
	u32 i;
	int err;

	lockdep_assert_held(&c->kvm->slots_arch_lock);

	for (i = 0; i < c->plan.changes; i++, c->prepared++) {
		const struct plan_change *change = &c->plan.change[i];
		struct kvm_memory_slot *new = change->after.slot;
		struct kvm_memory_slot *old = change->kind == PLAN_REPLACE ?
						      NULL : change->before.slot;

		if (!changes(change))
			continue;
		if (fatal_signal_pending(current))
			return -EINTR;
		if (new && dirty_alloc(c->kvm, new))
			return blame_change(c, i, MEMSLOT_REASON_MEMORY, -ENOMEM);
		err = internal(kvm_arch_prepare_memory_region)(c->kvm, old, new,
							       mr_change(change));
		if (err == -EINVAL)
			return blame_change(c, i, MEMSLOT_REASON_GPA_RANGE, err);
		if (err)
			return blame_change(c, i, MEMSLOT_REASON_MEMORY, err);
		cond_resched();
	}
	dirty_unset_kept(&c->plan);
	return 0;
}

/* Give back what steps 1 and 2 allocated, and nothing that the old slots own. */
static void unwind(struct commit *c)
{
	u32 i;

	for (i = 0; i < c->plan.changes; i++) {
		struct kvm_memory_slot *slot = c->plan.change[i].after.slot;

		if (!slot)
			continue;
		/* A reflag shares its arch arrays with the old slot. */
		if (i < c->prepared && c->plan.change[i].kind != PLAN_REFLAG)
			internal(kvm_arch_free_memslot)(c->kvm, slot);
		dirty_free(slot);
		kfree(slot);
		c->plan.change[i].after.slot = NULL;
	}
	c->prepared = 0;
}

/* ---- Steps 3 and 10: the trees ---- */

/*
 * Bring the inactive set of each touched address space to the new layout.  All
 * old slots leave before the first new one comes: the tree of gfns holds no
 * overlaps.
 */
static void update_inactive(struct commit *c)
{
	struct kvm_memslots *inactive[MEMSLOT_MAX_ADDRESS_SPACES];
	u32 i, as;

	for (as = 0; as < compat_address_spaces(c->kvm); as++) {
		inactive[as] = layout_inactive(c->kvm, as);
		layout_forget_last_used(inactive[as]);
	}
	for (i = 0; i < c->plan.changes; i++) {
		const struct plan_region *old = &c->plan.change[i].before;

		if (changes(&c->plan.change[i]) && old->slot)
			layout_take_out(inactive[old->address_space], old->slot);
		cond_resched();
	}
	for (i = 0; i < c->plan.changes; i++) {
		const struct plan_region *new = &c->plan.change[i].after;

		if (new->slot)
			layout_put_in(inactive[new->address_space], new->slot);
		cond_resched();
	}
}

/*
 * Wait until no MMU notifier is between its start and its end: it would find
 * other slots at the end than at the start, and its counts would not balance.
 * There is one waiter at most, for slots_lock is held.
 */
static void wait_for_invalidations(struct kvm *kvm)
	__must_hold(&kvm->mn_invalidate_lock)
{
	prepare_to_rcuwait(&kvm->mn_memslots_update_rcuwait);
	while (kvm->mn_active_invalidate_count) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		spin_unlock(&kvm->mn_invalidate_lock);
		schedule();
		spin_lock(&kvm->mn_invalidate_lock);
	}
	finish_rcuwait(&kvm->mn_memslots_update_rcuwait);
}

static void build(struct commit *c)
{
	update_inactive(c);

	/* Wait now, so that the wait in step 6, with the fence up, is short. */
	spin_lock(&c->kvm->mn_invalidate_lock);
	wait_for_invalidations(c->kvm);
	spin_unlock(&c->kvm->mn_invalidate_lock);
}

/* ---- Steps 4 and 9: the fence ---- */

/* Reflagged slots keep their translations, as they do when KVM does it. */
static bool needs_fence(const struct plan *plan)
{
	return plan->fence_gfn.start < plan->fence_gfn.end;
}

/*
 * From here every page fault in range is retried before it installs anything.
 * In range is the whole of every slot that changes, before and after: a fault
 * that found no slot yet must not race with one that finds the new one, and a
 * fault that still has the old one would judge huge pages by its bounds.
 */
static void raise_fence(struct commit *c)
{
	if (!needs_fence(&c->plan))
		return;
	write_lock(&c->kvm->mmu_lock);
	c->fenced_at = ktime_get_ns();
	compat_fence_raise(c->kvm, &c->plan);
	write_unlock(&c->kvm->mmu_lock);
}

/*
 * Not before the grace period: a fault looks its slot up before it samples the
 * sequence number that ends here, and does not look again.  Only SRCU keeps
 * one with an old slot from getting through.
 */
static void drop_fence(struct commit *c)
{
	if (!needs_fence(&c->plan))
		return;
	write_lock(&c->kvm->mmu_lock);
	compat_fence_drop(c->kvm, &c->plan);
	write_unlock(&c->kvm->mmu_lock);
	c->reply->ns_fenced = ktime_get_ns() - c->fenced_at;
}

/* ---- Steps 6 to 8: publish ---- */

/*
 * KVM's cache of an emulated access may compare the generation of address
 * space 0 alone, so that one always gets a new one.
 */
static bool publishes(const struct commit *c, u32 as)
{
	return !as || c->plan.touched & BIT(as);
}

static void publish(struct commit *c)
{
	struct kvm_memslots *slots[MEMSLOT_MAX_ADDRESS_SPACES];
	struct kvm *kvm = c->kvm;
	u32 as;

	for (as = 0; as < compat_address_spaces(kvm); as++) {
		slots[as] = layout_inactive(kvm, as);
		if (publishes(c, as))
			slots[as]->generation = __kvm_memslots(kvm, as)->generation |
						KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS;
	}

	spin_lock(&kvm->mn_invalidate_lock);
	wait_for_invalidations(kvm);
	for (as = 0; as < compat_address_spaces(kvm); as++)
		if (publishes(c, as))
			rcu_assign_pointer(kvm->memslots[as], slots[as]);
	spin_unlock(&kvm->mn_invalidate_lock);

	/* A reader may be waiting for it inside the SRCU section that step 7 awaits. */
	mutex_unlock(&kvm->slots_arch_lock);
}

/*
 * Ends the time in which nothing may be cached for the new generation, and
 * makes vCPUs look at it.  One kick per vCPU, as for any of KVM's own changes.
 */
static void end_update(struct commit *c)
{
	struct kvm *kvm = c->kvm;
	u32 as, spaces = compat_address_spaces(kvm);

	for (as = 0; as < spaces; as++) {
		struct kvm_memslots *slots = __kvm_memslots(kvm, as);
		u64 generation;

		if (!publishes(c, as))
			continue;
		/* Unique over all address spaces: each uses its own residue. */
		generation = (slots->generation & ~KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS) +
			     spaces;
		internal(kvm_arch_memslots_updated)(kvm, generation);
		slots->generation = generation;
	}
}

/* ---- Step 11: dirty bits, KVM's own bookkeeping, the end of the old slots ---- */

static void account(struct commit *c, struct kvm_memory_slot *old,
		    struct kvm_memory_slot *new, enum kvm_mr_change change)
{
	compat_account(c->kvm, old, new, change);
	internal(kvm_arch_commit_memory_region)(c->kvm, old, new, change);
}

static void finish(struct commit *c)
{
	u32 i;

	dirty_carry(&c->plan);
	harvest_write(&c->harvest, c->request, &c->plan);

	/* Creates first: KVM sizes its page cache by the sum of all slots. */
	for (i = 0; i < c->plan.changes; i++) {
		const struct plan_change *change = &c->plan.change[i];

		if (change->kind == PLAN_CREATE || change->kind == PLAN_REPLACE)
			account(c, NULL, change->after.slot, KVM_MR_CREATE);
		cond_resched();
	}

	for (i = 0; i < c->plan.changes; i++) {
		const struct plan_change *change = &c->plan.change[i];
		struct kvm_memory_slot *old = change->before.slot;

		switch (change->kind) {
		case PLAN_NOTHING:
		case PLAN_CREATE:
			continue;
		case PLAN_MOVE: /* frees old->arch */
			account(c, old, change->after.slot, KVM_MR_MOVE);
			break;
		case PLAN_REFLAG: /* old->arch belongs to the new slot now */
			account(c, old, change->after.slot, KVM_MR_FLAGS_ONLY);
			break;
		case PLAN_DELETE:
		case PLAN_REPLACE:
			account(c, old, NULL, KVM_MR_DELETE);
			internal(kvm_arch_free_memslot)(c->kvm, old);
			break;
		}
		dirty_free(old);
		kfree(old);
		cond_resched();
	}
}

/* ---- The report ---- */

static void report_plan(struct commit *c, u32 park_cause)
{
	struct memslot_commit *reply = c->reply;
	const struct plan *plan = &c->plan;

	reply->created = plan->count[PLAN_CREATE];
	reply->deleted = plan->count[PLAN_DELETE];
	reply->replaced = plan->count[PLAN_REPLACE];
	reply->moved = plan->count[PLAN_MOVE];
	reply->reflagged = plan->count[PLAN_REFLAG];
	reply->pages_kept = plan->pages_kept;
	reply->pages_remapped = plan->pages_remapped;
	reply->pages_removed = plan->pages_removed;
	reply->pages_added = plan->pages_added;
	if (changes_nothing(plan))
		return;
	reply->park_cause = park_cause ?: c->parked_for;
	reply->strategy = reply->park_cause ? MEMSLOT_STRATEGY_PARK : MEMSLOT_STRATEGY_FENCE;
}

/*
 * With slots_lock, or as a reader: a layout that is still to come into force has
 * the generation of the one before.
 */
static void report_generations(struct kvm *kvm, struct memslot_commit *reply)
{
	u32 as;

	for (as = 0; as < compat_address_spaces(kvm); as++)
		reply->generation[as] = __kvm_memslots(kvm, as)->generation &
					~KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS;
}

/**
 * commit_refused - report on a batch that was refused before any lock was taken
 * @kvm: the VM
 * @reply: out: the generations
 */
void commit_refused(struct kvm *kvm, struct memslot_commit *reply)
{
	int reader = srcu_read_lock(&kvm->srcu);

	report_generations(kvm, reply);
	srcu_read_unlock(&kvm->srcu, reader);
}

/* ---- The way through ---- */

static u32 park_cause(struct commit *c)
{
	if (c->reply->flags & MEMSLOT_COMMIT_PARK)
		return MEMSLOT_PARK_REQUESTED;
	return gate_park_cause(c->kvm, &c->plan);
}

/* With slots_arch_lock; releases it. */
static int apply(struct commit *c)
{
	int err;

	err = prepare(c);
	if (err || c->test_only) {
		mutex_unlock(&c->kvm->slots_arch_lock);
		unwind(c);
		return err;
	}
	step_done(c, STEP_PREPARE);

	build(c); /* 3 */
	step_done(c, STEP_BUILD);
	raise_fence(c); /* 4 */
	step_done(c, STEP_FENCE);
	zap(c->kvm, &c->plan); /* 5 */
	step_done(c, STEP_ZAP);
	publish(c); /* 6 */
	step_done(c, STEP_PUBLISH);
	readers_wait(c->kvm, c->park); /* 7 */
	c->reply->grace_periods++;
	step_done(c, STEP_WAIT);
	end_update(c); /* 8 */
	step_done(c, STEP_UPDATED);
	drop_fence(c); /* 9 */
	step_done(c, STEP_UNFENCE);
	update_inactive(c); /* 10 */
	step_done(c, STEP_MIRROR);
	finish(c); /* 11 */
	step_done(c, STEP_FINISH);
	return 0;
}

/* With slots_lock.  Returns NEEDS_PARKING if the fence is not enough. */
static int attempt(struct commit *c)
{
	bool may_need_parking = !c->park && !c->test_only;
	u32 cause;
	int err;

	err = check_generation(c);
	if (err)
		return err;
	err = make_plan(c);
	if (err)
		return err;
	if (changes_nothing(&c->plan)) {
		report_plan(c, MEMSLOT_PARK_NOT);
		return 0;
	}
	cause = park_cause(c);
	if (may_need_parking && cause) {
		c->parked_for = cause;
		return NEEDS_PARKING;
	}
	err = allocate_slots(c);
	if (err) {
		unwind(c);
		return err;
	}

	mutex_lock(&c->kvm->slots_arch_lock);
	err = gate_tracked(c->kvm, &c->error.reason);
	cause = park_cause(c);
	if (!err && may_need_parking && cause) {
		/* The first nested root came in between. */
		c->parked_for = cause;
		err = NEEDS_PARKING;
	}
	if (err) {
		mutex_unlock(&c->kvm->slots_arch_lock);
		unwind(c);
		return err;
	}
	err = apply(c);
	if (!err)
		report_plan(c, cause);
	return err;
}

static int lock_slots(struct commit *c)
{
	if (c->park)
		return park_lock_slots(c->park, &c->error.reason);
	return mutex_lock_killable(&c->kvm->slots_lock);
}

static int attempt_locked(struct commit *c)
{
	int err;

	err = lock_slots(c);
	if (err)
		return err;
	err = attempt(c);
	report_generations(c->kvm, c->reply);
	mutex_unlock(&c->kvm->slots_lock);
	return err;
}

static int attempt_parked(struct commit *c)
{
	int err;

	c->park = park_begin(c->kvm, &c->error.reason);
	if (IS_ERR(c->park))
		return PTR_ERR(c->park);
	step_done(c, STEP_PARK);
	err = attempt_locked(c);
	park_end(c->park);
	return err;
}

/**
 * commit_apply - apply a batch to a VM, or find out what that would do
 * @kvm: the VM; the caller may change it
 * @request: what is wanted; bitmap buffers are in the current process's memory
 * @reply: flags in; everything that is out must be zero, and is filled in
 *
 * Return: 0, or a negative errno as described for MEMSLOT_IOC_COMMIT; then
 * nothing has changed.
 */
int commit_apply(struct kvm *kvm, const struct plan_request *request,
		 struct memslot_commit *reply)
{
	struct commit c = {
		.kvm = kvm,
		.request = request,
		.test_only = reply->flags & MEMSLOT_COMMIT_TEST_ONLY,
		.reply = reply,
		.error = { MEMSLOT_NO_ENTRY, MEMSLOT_REASON_NONE },
	};
	int err;

	trace_memslot_commit_start(kvm, request->nr_entries, reply->flags);
	err = gate_refusal(kvm, &c.error.reason);
	if (!err)
		err = harvest_pin(&c.harvest, request, &c.error);
	if (err)
		commit_refused(kvm, reply);
	else
		err = attempt_locked(&c);
	if (err == NEEDS_PARKING)
		err = attempt_parked(&c);
	harvest_unpin(&c.harvest);
	plan_free(&c.plan);
	reply->failed_index = c.error.index;
	reply->reason = c.error.reason;
	trace_memslot_commit_end(kvm, err, reply);
	return err;
}
