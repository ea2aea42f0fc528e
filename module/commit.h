/* SPDX-License-Identifier: GPL-2.0 */
/* A batch is applied to a VM; commit.c knows nothing of the ioctl that asks for it. */
#ifndef MEMSLOT_COMMIT_H
#define MEMSLOT_COMMIT_H

#include <linux/kvm_host.h>
#include <linux/memslot.h>

#include "plan.h"

/**
 * struct commit_options - how a batch shall be applied
 * @test_only: find out what would be done, and change nothing
 * @park: take all vCPUs out of KVM_RUN, whatever the batch is
 * @if_generation: only if the address spaces that the batch is about have these generations
 * @generation: per address space; looked at with @if_generation
 * @deadline: in jiffies, when to give up as long as nothing is visible; counts for a
 *	commit that is asked to park, or to hand back a dirty bitmap, which no commit
 *	does without parking
 * @file: the open file of /dev/memslot: while there is a reference to it, the VM and
 *	this module stay
 */
struct commit_options {
	bool test_only;
	bool park;
	bool if_generation;
	u64 generation[MEMSLOT_MAX_ADDRESS_SPACES];
	unsigned long deadline;
	struct file *file;
};

/**
 * struct commit_result - what came of it
 * @error: on error: which entry is to blame, and for what
 * @strategy: enum memslot_strategy
 * @park_cause: enum memslot_park_cause
 * @totals: what the plan came to
 * @grace_periods: how many were waited for; with test_only how many it would be
 * @nr_tombstones: ranges of gfns that had an invalid slot for a while
 * @late_root: the VM's first shadow root was allocated while they had it
 * @ns_fenced: nanoseconds that the fence was up
 * @generation: KVM's generation per address space, after the commit or as it is
 */
struct commit_result {
	struct plan_error error;
	u32 strategy;
	u32 park_cause;
	struct plan_totals totals;
	u32 grace_periods;
	u32 nr_tombstones;
	bool late_root;
	u64 ns_fenced;
	u64 generation[MEMSLOT_MAX_ADDRESS_SPACES];
};

int commit_apply(struct kvm *kvm, const struct plan_request *request,
		 const struct commit_options *options, struct commit_result *result);
void commit_refused(struct kvm *kvm, struct commit_result *result);

#endif /* MEMSLOT_COMMIT_H */
