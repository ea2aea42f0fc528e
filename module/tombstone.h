/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tombstones: slots marked KVM_MEMSLOT_INVALID in the place of memory that goes
 * away, for as long as a vCPU may still rely on a slot being there.
 */
#ifndef MEMSLOT_TOMBSTONE_H
#define MEMSLOT_TOMBSTONE_H

#include <linux/kvm_host.h>

#include "plan.h"

/**
 * struct tombstone - an invalid slot for one range of gfns that is uncovered
 * @slot: what KVM sees
 * @whole: the old slot if all of it is uncovered, else NULL; the two share their
 *	arch arrays
 * @change: index of the change whose old slot had the range
 * @prepared: @slot has arch arrays
 */
struct tombstone {
	struct kvm_memory_slot slot;
	struct kvm_memory_slot *whole;
	u32 change;
	bool prepared;
};

/**
 * struct tombstones - all tombstones of a commit
 * @nr: how many; 0 for a commit that needs none
 * @stone: the tombstones
 */
struct tombstones {
	u32 nr;
	struct tombstone *stone;
};

int tombstones_alloc(struct tombstones *tombstones, const struct plan *plan);
int tombstones_prepare(struct kvm *kvm, struct tombstones *tombstones, u32 *change);
void tombstones_put_in(struct tombstones *tombstones, struct kvm_memslots *sets[]);
void tombstones_take_out(struct tombstones *tombstones, struct kvm_memslots *sets[]);
void tombstones_return_arrays(struct tombstones *tombstones);
void tombstones_free(struct kvm *kvm, struct tombstones *tombstones);

#endif /* MEMSLOT_TOMBSTONE_H */
