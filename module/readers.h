/* SPDX-License-Identifier: GPL-2.0 */
/* Whoever looks slots up, and may still have the old ones. */
#ifndef MEMSLOT_READERS_H
#define MEMSLOT_READERS_H

#include <linux/kvm_host.h>

void readers_wait(struct kvm *kvm, bool parked);

#endif /* MEMSLOT_READERS_H */
