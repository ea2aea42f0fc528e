/* SPDX-License-Identifier: GPL-2.0 */
/* Pages that a processor has logged for a vCPU (PML), and KVM has not looked at yet. */
#ifndef MEMSLOT_PML_H
#define MEMSLOT_PML_H

#include <linux/kvm_host.h>

void pml_flush(struct kvm *kvm);

#endif /* MEMSLOT_PML_H */
