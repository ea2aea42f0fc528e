/* SPDX-License-Identifier: GPL-2.0 */
#ifndef MEMSLOT_ZAP_H
#define MEMSLOT_ZAP_H

#include <linux/kvm_host.h>

#include "plan.h"

void zap(struct kvm *kvm, const struct plan *plan);

#endif /* MEMSLOT_ZAP_H */
