/* SPDX-License-Identifier: GPL-2.0 */
/* Which VMs may be changed, by whom and by which rules, and when a fence is not enough. */
#ifndef MEMSLOT_GATE_H
#define MEMSLOT_GATE_H

#include <linux/kvm_host.h>

#include "plan.h"

/*
 * Does the VM report dirty pages in rings?  KVM sets this with kvm->lock, which a
 * commit does not always hold, and only while there is no vCPU, so before a guest can
 * write to a page.
 */
static inline bool gate_has_dirty_ring(struct kvm *kvm)
{
	return READ_ONCE(kvm->dirty_ring_size);
}

/*
 * Does a plan hand a dirty log back, or take it to other gfns?  Then the log must be
 * complete by then: a page that is marked later is marked by its gfn.
 */
static inline bool gate_takes_log_away(const struct plan *plan)
{
	return plan->hands_back || plan->moves_log;
}

void gate_rules(struct kvm *kvm, struct plan_rules *rules);
int gate_access(struct kvm *kvm, u32 *reason);
int gate_admission(struct kvm *kvm, const unsigned long *deadline, u32 *reason);
int gate_tracked(struct kvm *kvm, u32 *reason);
bool gate_has_shadow_root(struct kvm *kvm);
u32 gate_park_cause(struct kvm *kvm, const struct plan *plan);
bool gate_needs_tombstones(const struct plan *plan);

#endif /* MEMSLOT_GATE_H */
