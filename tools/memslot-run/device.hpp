// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * What the library asks of the kernel.  device.cpp asks it; the tests' fake answers in its place.
 * Results are 0 or an errno unless it says otherwise.
 */
#pragma once

#include "collector.hpp"

#include <cstdint>
#include <linux/kvm.h>
#include <linux/memslot.h>
#include <span>

namespace memslot_run::device {

/**
 * Opens /dev/memslot and binds it to a VM.
 *
 * @param vm_fd what KVM_CREATE_VM returned
 * @param fd out: the open file, close-on-exec
 * @param allowed out: what can be done with it
 */
int bind(int vm_fd, int &fd, limits &allowed);

/** MEMSLOT_IOC_COMMIT. */
int commit(int fd, std::span<const memslot_entry> entries, std::uint32_t flags,
	   memslot_commit &reply);

/** KVM_SET_USER_MEMORY_REGION, past the interposed ioctl(). */
int set_region(int vm_fd, const kvm_userspace_memory_region &call);

/** The VMM's own ioctl, as it made it; returns and sets errno as ioctl() does. */
int forward(int fd, unsigned long request, void *argument);

/** True if both descriptors are of one open file, as dup() makes them. */
bool same_file(int one, int other);

/** A copy of one of our descriptors elsewhere; -1 if there is no room. */
int relocate(int fd);

/** Closes one of our descriptors. */
void close(int fd);

} // namespace memslot_run::device
