// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * The VMs of this process, and the moments at which their batches are committed.  interpose.cpp
 * calls what is here.
 *
 * Locking: one lock per VM, one for the table of VMs; the table's is taken first, and together with
 * a VM's only where no commit can be.  While a commit waits, which may be for a page fault that the
 * VMM itself serves, its VM's lock is held: only changes of the VM's slots, and what KVM holds up
 * for them too, take that.  A thread that holds either is marked as inside, and the interposed
 * functions do nothing of their own for it.
 */
#pragma once

#include "held_locks.hpp"
#include "statistics.hpp"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace memslot_run {

/** Most VMs of one process at a time; the calls of further ones are passed on. */
inline constexpr unsigned max_vms = 64;

/** What is known about the calling thread. */
struct thread {
	/** it is in this library; a signal handler that finds it so must not enter again */
	std::atomic<bool> inside;
	/** bit per VM: it collected something in batch number[VM], which may be gone by now */
	std::uint64_t collected;
	std::array<std::uint64_t, max_vms> number;
	held_locks held;
};

extern constinit thread_local thread self;

/** Some vCPU has run by an ioctl that was seen: so all are, and their KVM_RUN can be made again. */
extern std::atomic<bool> vcpus_run;

/** Commits what the calling thread had a part in. */
void commit_own(moment why);

/** The calling thread is about to do something that makes its changes matter. */
inline void leaves(moment why)
{
	if (self.collected) [[unlikely]]
		commit_own(why);
}

/** It is about to wake another thread, which can look as soon as it gets the mutex, if any. */
inline void wakes()
{
	if (self.held.none())
		leaves(moment::block);
}

/** It is about to release a mutex. */
inline void releases(const void *lock)
{
	if (self.collected && self.held.is_last(lock)) [[unlikely]]
		commit_own(moment::unlock);
}

/** Somebody's ioctl; does it, returns and sets errno as ioctl() does. */
int kvm_ioctl(int fd, unsigned long request, void *argument);

/**
 * The descriptor is about to be closed by the VMM.
 *
 * @return false if it is one of ours, which is closed to the VMM
 */
bool closes(int fd);

/** The descriptor is about to be replaced by another file: one of ours gets out of the way. */
void replaces(int fd);

/** A descriptor got a copy. */
void copied(int from, int to);

/** The lowest of our own descriptors that is not below @p from; -1 if there is none. */
int next_own(int from);

/** The lowest descriptor of a VM that is not below @p from; -1 if there is none. */
int next_vm(int from);

} // namespace memslot_run
