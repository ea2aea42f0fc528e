/* SPDX-License-Identifier: GPL-2.0 */
#ifndef MEMSLOT_COMMIT_H
#define MEMSLOT_COMMIT_H

#include <linux/kvm_host.h>
#include <linux/memslot.h>

#include "plan.h"

int commit_apply(struct kvm *kvm, const struct plan_request *request,
		 struct memslot_commit *reply);
void commit_refused(struct kvm *kvm, struct memslot_commit *reply);

#endif /* MEMSLOT_COMMIT_H */
