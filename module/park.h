/* SPDX-License-Identifier: GPL-2.0 */
/* Parking: no vCPU is inside KVM_RUN. */
#ifndef MEMSLOT_PARK_H
#define MEMSLOT_PARK_H

#include <linux/kvm_host.h>

/* How long vCPUs may take to leave KVM_RUN before the commit gives up */
#define PARK_TIMEOUT_MS 2000

struct park;

struct park *park_begin(struct kvm *kvm, u32 *reason);
int park_lock_slots(struct park *park, u32 *reason);
void park_end(struct park *park);
void park_drain(void);

#endif /* MEMSLOT_PARK_H */
