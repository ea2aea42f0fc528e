// SPDX-License-Identifier: GPL-2.0
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>

#include "device.h"
#include "kvm_internals.h"
#include "park.h"

static int __init memslot_init(void)
{
	int err;

	err = kvm_internals_resolve();
	if (err)
		return err;
	return memslot_device_register();
}

static void __exit memslot_exit(void)
{
	memslot_device_unregister();
	park_drain();
}

module_init(memslot_init);
module_exit(memslot_exit);

MODULE_DESCRIPTION("Atomic batches of KVM memory-slot changes");
MODULE_AUTHOR("The memslot founders");
MODULE_LICENSE("GPL");
MODULE_VERSION(MEMSLOT_VERSION);
