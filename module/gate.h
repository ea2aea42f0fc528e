/* SPDX-License-Identifier: GPL-2.0 */
/* Which VMs are served, by which rules, and when a fence is not enough. */
#ifndef MEMSLOT_GATE_H
#define MEMSLOT_GATE_H

#include <linux/kvm_host.h>

#include "plan.h"

void gate_rules(struct kvm *kvm, struct plan_rules *rules);
int gate_tracked(struct kvm *kvm, u32 *reason);
int gate_refusal(struct kvm *kvm, u32 *reason);
u32 gate_park_cause(struct kvm *kvm, const struct plan *plan);

#endif /* MEMSLOT_GATE_H */
