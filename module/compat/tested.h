/* SPDX-License-Identifier: GPL-2.0 */
/* Included once: says so if this kernel is newer than any that was tested. */
#include <linux/version.h>

/* MEMSLOT_KERNEL_MAX is versions.mk's KERNEL_MAX, with a comma for the dot */
#define MEMSLOT_VERSION(...) KERNEL_VERSION(__VA_ARGS__)

#if (LINUX_VERSION_CODE & ~0xff) > MEMSLOT_VERSION(MEMSLOT_KERNEL_MAX, 0)
#warning "memslot is untested on this kernel, which is newer than KERNEL_MAX in versions.mk"
#endif
