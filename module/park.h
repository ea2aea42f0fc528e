/* SPDX-License-Identifier: GPL-2.0 */
/* Parking: no vCPU is inside KVM_RUN. */
#ifndef MEMSLOT_PARK_H
#define MEMSLOT_PARK_H

#include <linux/kvm_host.h>

struct park;

struct park *park_begin(struct kvm *kvm, unsigned long deadline, u32 *reason);
void park_end(struct park *park);
void park_drain(void);

#endif /* MEMSLOT_PARK_H */
