/* SPDX-License-Identifier: GPL-2.0 */
/* Dirty bitmaps of slots across a commit. */
#ifndef MEMSLOT_DIRTY_H
#define MEMSLOT_DIRTY_H

#include <linux/kvm_host.h>

#include "plan.h"

int dirty_alloc(struct kvm *kvm, struct kvm_memory_slot *slot);
void dirty_free(struct kvm_memory_slot *slot);
void dirty_unset_kept(const struct plan *plan);
void dirty_carry(const struct plan *plan);

#endif /* MEMSLOT_DIRTY_H */
