// SPDX-License-Identifier: GPL-2.0
/*
 * One batch, in twelve steps; step.h has their names.  Everything that can fail comes
 * before step 4, and from there on nothing does.  A commit that uncovers memory
 * publishes twice (step 10); any other leaves that step out.
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
#include "deadline.h"
#include "dirty.h"
#include "gate.h"
#include "harvest.h"
#include "layout.h"
#include "park.h"
#include "plan.h"
#include "pml.h"
#include "readers.h"
#include "tombstone.h"
#include "zap.h"

#include "trace.h"

/* What a commit knows on its way */
struct commit {
	struct kvm *kvm;
	const struct plan_request *request;
	const struct commit_options *options;
	struct commit_result *result;

	/*
	 * A commit that is known from the start to park has the deadline of its options.
	 * Any other one waits for slots_lock without limit, as KVM's own ioctl does; if it
	 * finds then that it has to park, its time begins there, or there might be none
	 * left for the vCPUs.
	 */
	bool has_deadline;
	unsigned long deadline;
	struct harvest harvest;
	struct park *park; /* NULL while the vCPUs run */
	u32 park_cause; /* the last that was found; the layout may differ by now */

	/*
	 * The plan is only good as long as the layout has the generations that it was made
	 * for, and the VM has a dirty ring, or none, as it had then.
	 */
	bool planned;
	u64 planned_generation[MEMSLOT_MAX_ADDRESS_SPACES];
	bool planned_dirty_ring;
	struct plan plan; /* before.slot is KVM's; after.slot is ours until step 6 */
	u32 nr_prepared; /* changes that kvm_arch_prepare_memory_region() was called for */
	struct tombstones tombstones;
	u64 fenced_at; /* ktime_get_ns() */
};

/* attempt() returns this where the vCPUs have to be parked first; it does not leave this file. */
#define NEEDS_PARKING 1

static void step_done(struct commit *c, enum memslot_step step)
{
	trace_memslot_commit_step(c->kvm, step);
}

static int blame_nobody(struct commit *c, u32 reason, int err)
{
	return plan_blame(&c->result->error, MEMSLOT_NO_ENTRY, reason, err);
}

/* Slots that go because no entry names them are nobody's fault. */
static int blame(struct commit *c, const struct plan_change *change, u32 reason, int err)
{
	if (!change->entry)
		return blame_nobody(c, reason, err);
	return plan_blame(&c->result->error, change->entry - c->request->entries, reason, err);
}

/* Parked vCPUs do not meet slots that go, whatever the cause they are parked for. */
static bool needs_tombstones(struct commit *c)
{
	return !c->park && !c->park_cause && gate_needs_tombstones(&c->plan);
}

/* ---- Step 1: look up, plan, allocate ---- */

static bool changes_nothing(const struct plan *plan)
{
	return !plan->nr_changes;
}

/*
 * Is the layout still the one that was planned for?  Each change gives KVM a new
 * generation; only dirty rings come without one.
 */
static bool plan_is_current(struct commit *c)
{
	u32 as;

	if (!c->planned || c->planned_dirty_ring != gate_has_dirty_ring(c->kvm))
		return false;
	for (as = 0; as < c->request->rules->address_spaces; as++)
		if (c->planned_generation[as] != __kvm_memslots(c->kvm, as)->generation)
			return false;
	return true;
}

/*
 * A plan that was made before the vCPUs were parked is still good, unless another
 * thread has changed the layout in between.
 */
static int step_plan(struct commit *c)
{
	const struct plan_layout layout = {
		.kvm = c->kvm,
		.dirty_ring = gate_has_dirty_ring(c->kvm),
	};
	u32 as;
	int err;

	if (plan_is_current(c))
		return 0;
	plan_free(&c->plan);
	c->planned = false;
	err = plan_build(&c->plan, c->request, &layout, &c->result->error);
	if (err)
		return err;
	for (as = 0; as < c->request->rules->address_spaces; as++)
		c->planned_generation[as] = __kvm_memslots(c->kvm, as)->generation;
	c->planned_dirty_ring = layout.dirty_ring;
	c->planned = true;
	step_done(c, STEP_PLAN);
	return 0;
}

/* Is the layout still the one that the caller has seen, where the batch is about it? */
static int check_generation(struct commit *c)
{
	u32 named = c->request->replace_spaces;
	u32 i, as;

	if (!c->options->if_generation)
		return 0;
	for (i = 0; i < c->request->nr_entries; i++)
		named |= BIT(c->request->entries[i].address_space);
	for (as = 0; as < c->request->rules->address_spaces; as++)
		if (named & BIT(as) &&
		    c->options->generation[as] != __kvm_memslots(c->kvm, as)->generation)
			return blame_nobody(c, MEMSLOT_REASON_GENERATION, -ESTALE);
	return 0;
}

static int allocate_slots(struct commit *c)
{
	u32 i;
	int err;

	for (i = 0; i < c->plan.nr_changes; i++) {
		struct plan_change *change = &c->plan.changes[i];
		struct plan_region *new = &change->after;
		struct kvm_memory_slot *slot;

		if (!new->npages)
			continue;
		slot = kzalloc(sizeof(*slot), GFP_KERNEL_ACCOUNT);
		if (!slot)
			return blame(c, change, MEMSLOT_REASON_MEMORY, -ENOMEM);
		slot->as_id = new->address_space;
		slot->id = new->id;
		slot->flags = new->flags;
		slot->base_gfn = new->gfn;
		slot->npages = new->npages;
		slot->userspace_addr = new->hva;
		new->slot = slot;
	}
	if (!needs_tombstones(c))
		return 0;
	err = tombstones_alloc(&c->tombstones, &c->plan);
	return err ? blame_nobody(c, MEMSLOT_REASON_MEMORY, err) : 0;
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
 * KVM's prepare hook reads whether rmaps are in use, and for a reflag old->arch is
 * copied.  A vCPU that allocates the VM's first shadow root changes both for all slots
 * that it finds, under slots_arch_lock.  So that lock is held from here until the new
 * slots are published: a vCPU that takes it afterwards finds them.
 */
static int step_prepare(struct commit *c)
{
	u32 i;
	int err;

	lockdep_assert_held(&c->kvm->slots_arch_lock);

	for (i = 0; i < c->plan.nr_changes; i++, c->nr_prepared++) {
		const struct plan_change *change = &c->plan.changes[i];
		struct kvm_memory_slot *new = change->after.slot;
		struct kvm_memory_slot *old = change->kind == PLAN_REPLACE ?
						      NULL : change->before.slot;

		if (fatal_signal_pending(current))
			return -EINTR;
		if (new && dirty_alloc(c->kvm, new))
			return blame(c, change, MEMSLOT_REASON_MEMORY, -ENOMEM);
		err = internal(kvm_arch_prepare_memory_region)(c->kvm, old, new,
							       mr_change(change));
		if (err == -EINVAL)
			return blame(c, change, MEMSLOT_REASON_GPA_RANGE, err);
		if (err)
			return blame(c, change, MEMSLOT_REASON_MEMORY, err);
		cond_resched();
	}
	err = tombstones_prepare(c->kvm, &c->tombstones, &i);
	if (err == -EINTR)
		return err;
	if (err)
		return blame(c, &c->plan.changes[i], MEMSLOT_REASON_MEMORY, err);
	dirty_unset_kept(&c->plan);
	step_done(c, STEP_PREPARE);
	return 0;
}

/* Free what steps 1 and 2 have allocated, but nothing that belongs to the old slots. */
static void unwind(struct commit *c)
{
	u32 i;

	for (i = 0; i < c->plan.nr_changes; i++) {
		struct plan_change *change = &c->plan.changes[i];
		struct kvm_memory_slot *slot = change->after.slot;

		if (!slot)
			continue;
		/* A reflag shares its arch arrays with the old slot. */
		if (i < c->nr_prepared && change->kind != PLAN_REFLAG)
			internal(kvm_arch_free_memslot)(c->kvm, slot);
		dirty_free(slot);
		kfree(slot);
		change->after.slot = NULL;
	}
	c->nr_prepared = 0;
	tombstones_free(c->kvm, &c->tombstones);
}

/* ---- Steps 3, 9 and 10: the trees ---- */

/* Find the inactive set of each address space, which is about to be changed. */
static void get_inactive(struct commit *c, struct kvm_memslots *inactive[])
{
	u32 as;

	for (as = 0; as < c->request->rules->address_spaces; as++) {
		inactive[as] = layout_inactive(c->kvm, as);
		layout_forget_last_used(inactive[as]);
	}
}

/*
 * Bring the inactive sets to the new layout.  All old slots leave before the first
 * new one comes: the tree of gfns holds no overlaps.
 */
static void update_inactive(struct commit *c, struct kvm_memslots *inactive[])
{
	u32 i;

	for (i = 0; i < c->plan.nr_changes; i++) {
		const struct plan_region *old = &c->plan.changes[i].before;

		if (old->slot)
			layout_take_out(inactive[old->address_space], old->slot);
		cond_resched();
	}
	for (i = 0; i < c->plan.nr_changes; i++) {
		const struct plan_region *new = &c->plan.changes[i].after;

		if (new->slot)
			layout_put_in(inactive[new->address_space], new->slot);
		cond_resched();
	}
}

/*
 * Wait until no MMU notifier is between its start and its end.  One that is would find
 * other slots at its end than at its start, and the count of invalidations that it
 * raised would not be lowered again.  There is one waiter at most, for slots_lock is held.
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

static void step_build(struct commit *c)
{
	struct kvm_memslots *inactive[MEMSLOT_MAX_ADDRESS_SPACES];

	get_inactive(c, inactive);
	update_inactive(c, inactive);
	tombstones_put_in(&c->tombstones, inactive);

	/* Wait now, so that the wait in step 6, with the fence up, is short. */
	spin_lock(&c->kvm->mn_invalidate_lock);
	wait_for_invalidations(c->kvm);
	spin_unlock(&c->kvm->mn_invalidate_lock);
	step_done(c, STEP_BUILD);
}

/* ---- Steps 4 and 8: the fence ---- */

/* Slots of which only the dirty log changes keep their translations, as in KVM's own ioctl. */
static bool needs_fence(const struct plan *plan)
{
	return plan->fence_gfn.start < plan->fence_gfn.end;
}

/*
 * From here every page fault in the fence's range is retried before it installs a
 * translation.  The range has the whole of every slot that changes, before and after.
 * A fault that found no slot must not install an MMIO SPTE beside one that has found the
 * new slot; and a fault that still has the old slot would size a huge page by the bounds
 * of that one.
 */
static void step_fence(struct commit *c)
{
	if (needs_fence(&c->plan)) {
		write_lock(&c->kvm->mmu_lock);
		c->fenced_at = ktime_get_ns();
		compat_fence_raise(c->kvm, &c->plan);
		write_unlock(&c->kvm->mmu_lock);
	}
	step_done(c, STEP_FENCE);
}

static void step_zap(struct commit *c)
{
	zap(c->kvm, &c->plan);
	step_done(c, STEP_ZAP);
}

/*
 * Not before the grace period: a page fault looks its slot up once, before it samples
 * the sequence number that is raised here.  One that has an old slot and samples the
 * number after this would install old memory; only the end of its SRCU section says
 * that there is none.
 */
static void step_unfence(struct commit *c)
{
	if (needs_fence(&c->plan)) {
		write_lock(&c->kvm->mmu_lock);
		compat_fence_drop(c->kvm, &c->plan);
		write_unlock(&c->kvm->mmu_lock);
		c->result->ns_fenced = ktime_get_ns() - c->fenced_at;
	}
	step_done(c, STEP_UNFENCE);
}

/* ---- Steps 6, 7, 10: publish ---- */

/*
 * Address space 0 is published by every commit, even one that changes only the other:
 * KVM's cache of an emulated access may compare the generation of address space 0
 * alone, whichever it was looked up in, so that one has to get a new generation.
 */
static bool publishes(const struct commit *c, u32 as)
{
	return !as || c->plan.touched & BIT(as);
}

/*
 * Publish the inactive sets.
 *
 * @phase is a bit of the generation that tells the two publications of one commit
 * apart: whatever is cached with the first one's, a tombstone above all, must not be
 * used with the second one's.  The low bits stay those of the old layout.  They are
 * what an MMIO SPTE keeps, and one that is made until the commit ends has to be stale
 * as soon as the commit's final generation is there.
 */
static void publish(struct commit *c, u64 phase)
{
	struct kvm_memslots *slots[MEMSLOT_MAX_ADDRESS_SPACES];
	struct kvm *kvm = c->kvm;
	u32 as, spaces = c->request->rules->address_spaces;

	lockdep_assert_held(&kvm->slots_arch_lock);

	for (as = 0; as < spaces; as++) {
		slots[as] = layout_inactive(kvm, as);
		if (publishes(c, as))
			slots[as]->generation = layout_generation(__kvm_memslots(kvm, as)) |
						KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS | phase;
	}

	spin_lock(&kvm->mn_invalidate_lock);
	wait_for_invalidations(kvm);
	for (as = 0; as < spaces; as++)
		if (publishes(c, as))
			rcu_assign_pointer(kvm->memslots[as], slots[as]);
	spin_unlock(&kvm->mn_invalidate_lock);
}

static void step_publish(struct commit *c)
{
	publish(c, c->tombstones.nr ? LAYOUT_GEN_FIRST_OF_TWO : 0);
	step_done(c, STEP_PUBLISH);
}

static void wait_for_readers(struct commit *c)
{
	readers_wait(c->kvm, c->park);
	c->result->grace_periods++;
}

static void step_wait(struct commit *c)
{
	wait_for_readers(c);
	step_done(c, STEP_WAIT);
}

/*
 * Bring the sets that were published before to the new layout, too.  Nobody reads them
 * any more, and the next change, be it KVM's own or a commit, begins with them.
 */
static void step_mirror(struct commit *c)
{
	struct kvm_memslots *inactive[MEMSLOT_MAX_ADDRESS_SPACES];

	get_inactive(c, inactive);
	update_inactive(c, inactive);
	step_done(c, STEP_MIRROR);
}

/*
 * Publish the new layout without its tombstones, which is what the inactive sets
 * are by now.
 *
 * After the first grace period no vCPU passes the check that a root's gfn is visible,
 * if the new layout has no slot there.  But one that passed it before may have
 * allocated the VM's first shadow root meanwhile, and has counted it in a tombstone.
 * Such shadow pages must go while KVM can still look the tombstone up.
 */
static void step_republish(struct commit *c)
{
	struct kvm_memslots *inactive[MEMSLOT_MAX_ADDRESS_SPACES];

	if (gate_has_shadow_root(c->kvm)) {
		c->result->late_root = true;
		zap_tombstones(c->kvm, &c->tombstones);
	}
	/* A vCPU that allocates the VM's first shadow root walks all slots with this lock. */
	mutex_lock(&c->kvm->slots_arch_lock);
	publish(c, 0);
	mutex_unlock(&c->kvm->slots_arch_lock);
	step_done(c, STEP_REPUBLISH);
	wait_for_readers(c);
	step_done(c, STEP_REWAIT);

	get_inactive(c, inactive);
	tombstones_take_out(&c->tombstones, inactive);
	tombstones_return_arrays(&c->tombstones);
	tombstones_free(c->kvm, &c->tombstones);
}

/*
 * Give the new layout its final generation, which ends the time in which nothing may
 * be cached for it, and let KVM tell the vCPUs: by one request each, as for any change
 * of KVM's own.
 */
static void step_update(struct commit *c)
{
	struct kvm *kvm = c->kvm;
	u32 as, spaces = c->request->rules->address_spaces;

	for (as = 0; as < spaces; as++) {
		struct kvm_memslots *slots = __kvm_memslots(kvm, as);
		u64 generation;

		if (!publishes(c, as))
			continue;
		/*
		 * No two address spaces ever have the same generation: each begins with
		 * its own number and counts in steps of the number of spaces.
		 */
		generation = layout_generation(slots) + spaces;
		internal(kvm_arch_memslots_updated)(kvm, generation);
		/* KVM's caches and query.c read it without a lock at any time. */
		WRITE_ONCE(slots->generation, generation);
	}
	step_done(c, STEP_UPDATE);
}

/* ---- Step 12: dirty bits, KVM's own bookkeeping, the end of the old slots ---- */

static void account(struct commit *c, struct kvm_memory_slot *old,
		    struct kvm_memory_slot *new, enum kvm_mr_change change)
{
	compat_account(c->kvm, old, new, change);
	internal(kvm_arch_commit_memory_region)(c->kvm, old, new, change);
}

static void step_finish(struct commit *c)
{
	u32 i;

	dirty_carry(&c->plan);
	harvest_write(&c->harvest, &c->plan);

	/* Creates come first: KVM sizes its cache of shadow pages by the sum of all slots. */
	for (i = 0; i < c->plan.nr_changes; i++) {
		const struct plan_change *change = &c->plan.changes[i];

		if (change->kind == PLAN_CREATE || change->kind == PLAN_REPLACE)
			account(c, NULL, change->after.slot, KVM_MR_CREATE);
		cond_resched();
	}

	for (i = 0; i < c->plan.nr_changes; i++) {
		const struct plan_change *change = &c->plan.changes[i];
		struct kvm_memory_slot *old = change->before.slot;

		switch (change->kind) {
		default: /* PLAN_CREATE: no old slot */
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
	step_done(c, STEP_FINISH);
}

/* ---- The report ---- */

static void report_plan(struct commit *c)
{
	struct commit_result *result = c->result;

	result->totals = c->plan.totals;
	if (changes_nothing(&c->plan))
		return;
	result->park_cause = c->park_cause;
	result->strategy = c->park_cause ? MEMSLOT_STRATEGY_PARK : MEMSLOT_STRATEGY_FENCE;
	if (needs_tombstones(c))
		result->nr_tombstones = c->plan.nr_uncovered;
	if (c->options->test_only)
		result->grace_periods = result->nr_tombstones ? 2 : 1;
}

/*
 * With slots_lock, or as a reader: a layout that is still to come into force has
 * the generation of the one before.
 */
static void report_generations(struct kvm *kvm, struct commit_result *result)
{
	u32 as;

	for (as = 0; as < compat_address_spaces(kvm); as++)
		result->generation[as] = layout_generation(__kvm_memslots(kvm, as));
}

/**
 * commit_refused - report on a batch that was refused without slots_lock
 * @kvm: the VM
 * @result: out: the generations
 */
void commit_refused(struct kvm *kvm, struct commit_result *result)
{
	int reader = srcu_read_lock(&kvm->srcu);

	report_generations(kvm, result);
	srcu_read_unlock(&kvm->srcu, reader);
}

/* ---- The way through ---- */

/*
 * Has the commit to park?  Keeps the cause: once the vCPUs are parked, the layout may
 * have become another one, for which there would be none.
 */
static bool must_park(struct commit *c)
{
	u32 cause = c->options->park ? MEMSLOT_PARK_REQUESTED :
				       gate_park_cause(c->kvm, &c->plan);

	if (cause)
		c->park_cause = cause;
	return cause && !c->park && !c->options->test_only;
}

/*
 * What may have changed until slots_arch_lock was taken, and cannot as long as it is
 * held: another module may have begun to track pages, and a vCPU may have allocated the
 * VM's first shadow root.
 */
static int look_again(struct commit *c)
{
	int err;

	err = gate_tracked(c->kvm, &c->result->error.reason);
	if (err)
		return err;
	return must_park(c) ? NEEDS_PARKING : 0;
}

/*
 * That no vCPU is in KVM_RUN does not mean yet that KVM knows of each page that they
 * have written.  Where the log stays with its gfns that does not matter, see gate.c.
 */
static void complete_logs(struct commit *c)
{
	if (c->park && gate_takes_log_away(&c->plan))
		pml_flush(c->kvm);
}

static int apply(struct commit *c)
{
	int err;

	err = mutex_lock_killable(&c->kvm->slots_arch_lock);
	if (err)
		return err;
	err = look_again(c);
	if (!err)
		err = step_prepare(c); /* 2 */
	if (err || c->options->test_only) {
		mutex_unlock(&c->kvm->slots_arch_lock);
		return err;
	}
	complete_logs(c);
	step_build(c); /* 3 */
	step_fence(c); /* 4 */
	step_zap(c); /* 5 */
	step_publish(c); /* 6 */
	/* A reader may be waiting for it inside the SRCU section that is awaited next. */
	mutex_unlock(&c->kvm->slots_arch_lock);
	step_wait(c); /* 7 */
	step_unfence(c); /* 8 */
	step_mirror(c); /* 9 */
	if (c->tombstones.nr)
		step_republish(c); /* 10 */
	step_update(c); /* 11 */
	step_finish(c); /* 12 */
	return 0;
}

/* With slots_lock.  Returns NEEDS_PARKING if the fence is not enough. */
static int attempt(struct commit *c)
{
	int err;

	err = check_generation(c);
	if (err)
		return err;
	err = step_plan(c); /* 1 */
	if (err)
		return err;
	if (changes_nothing(&c->plan)) {
		report_plan(c);
		return 0;
	}
	if (must_park(c))
		return NEEDS_PARKING;
	err = allocate_slots(c);
	if (!err && c->park)
		err = readers_leave(c->kvm, c->options->file, c->deadline,
				    &c->result->error.reason);
	if (!err)
		err = apply(c);
	if (!err)
		report_plan(c);
	if (err || c->options->test_only)
		unwind(c);
	return err;
}

static int lock_slots(struct commit *c)
{
	/*
	 * The holder may sleep in KVM_GET_DIRTY_LOG, for a page of user memory, or wait
	 * for a reader that does.
	 */
	if (c->has_deadline)
		return deadline_lock(&c->kvm->slots_lock, c->deadline, &c->result->error.reason);
	return mutex_lock_killable(&c->kvm->slots_lock);
}

static int attempt_locked(struct commit *c)
{
	int err;

	err = lock_slots(c);
	if (err) {
		commit_refused(c->kvm, c->result);
		return err;
	}
	err = attempt(c);
	report_generations(c->kvm, c->result);
	mutex_unlock(&c->kvm->slots_lock);
	return err;
}

static int attempt_parked(struct commit *c)
{
	int err;

	if (!c->has_deadline) {
		c->has_deadline = true;
		c->deadline = deadline_from_now();
	}
	c->park = park_begin(c->kvm, c->deadline, &c->result->error.reason);
	if (IS_ERR(c->park))
		return PTR_ERR(c->park);
	step_done(c, STEP_PARK);
	err = attempt_locked(c);
	park_end(c->park);
	return err;
}

/* Does the caller ask for what only parking can do? */
static bool asks_to_park(const struct plan_request *request, const struct commit_options *options)
{
	u32 i;

	if (options->park)
		return true;
	for (i = 0; i < request->nr_entries; i++)
		if (request->entries[i].dirty_bitmap)
			return true;
	return false;
}

/**
 * commit_apply - apply a batch to a VM, or find out what that would do
 * @kvm: the VM; gate_access() lets the caller change it
 * @request: what is wanted; bitmap buffers are in the current process's memory
 * @options: how
 * @result: out
 *
 * Return: 0, or a negative errno as described for MEMSLOT_IOC_COMMIT; then
 * nothing has changed.
 */
int commit_apply(struct kvm *kvm, const struct plan_request *request,
		 const struct commit_options *options, struct commit_result *result)
{
	struct commit c = {
		.kvm = kvm,
		.request = request,
		.options = options,
		.result = result,
		.has_deadline = asks_to_park(request, options),
		.deadline = options->deadline,
	};
	int err;

	*result = (struct commit_result){ .error = PLAN_NO_ERROR };
	err = gate_admission(kvm, c.has_deadline ? &c.deadline : NULL, &result->error.reason);
	if (!err)
		err = harvest_pin(&c.harvest, request, &result->error);
	if (err)
		commit_refused(kvm, result);
	else
		err = attempt_locked(&c);
	if (err == NEEDS_PARKING)
		err = attempt_parked(&c);
	harvest_unpin(&c.harvest);
	plan_free(&c.plan);
	return err;
}
