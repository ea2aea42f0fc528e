/* SPDX-License-Identifier: GPL-2.0 */
#ifndef MEMSLOT_ZAP_H
#define MEMSLOT_ZAP_H

#include <linux/kvm_host.h>

#include "plan.h"
#include "tombstone.h"

void zap(struct kvm *kvm, const struct plan *plan);
void zap_tombstones(struct kvm *kvm, struct tombstones *tombstones);

#endif /* MEMSLOT_ZAP_H */
