/* SPDX-License-Identifier: GPL-2.0 */
/* Waiting for threads that have looked slots up and may still use the old ones. */
#ifndef MEMSLOT_READERS_H
#define MEMSLOT_READERS_H

#include <linux/kvm_host.h>

int readers_leave(struct kvm *kvm, struct file *file, unsigned long deadline, u32 *reason);
void readers_wait(struct kvm *kvm, bool parked);

#endif /* MEMSLOT_READERS_H */
