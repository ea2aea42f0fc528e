// SPDX-License-Identifier: GPL-2.0
/** @file  What the tests set and see of the kernel that fake_device.cpp plays. */
#pragma once

#include "model.hpp"

#include <atomic>
#include <cstdint>
#include <functional>
#include <linux/kvm.h>
#include <vector>

namespace test::fake {

/** Stands for /dev/kvm, and for every vCPU. */
inline constexpr int kvm_fd = 1000;
inline constexpr int vcpu_fd = 1001;

/** What happened to the VM, in order. */
struct event {
	enum kind : std::uint8_t {
		/** the module applied a batch */
		COMMIT,
		/** KVM_SET_USER_MEMORY_REGION itself */
		SINGLE,
		/** another ioctl reached KVM */
		IOCTL,
	} what;
	/** entries of the batch, or the slot, or the request */
	std::uint64_t detail;
	/** the thread, as gettid() has it */
	long by;
};

/** Forgets everything, and closes what was left open. */
void reset();

/** All events so far, of all VMs. */
std::vector<event> events();

/** How many of a kind there were. */
unsigned count(event::kind what);

/** The layout of the VM that was created last. */
model layout();

/** What the next bind, or the next commit, returns. */
inline std::atomic<int> fail_bind;
inline std::atomic<int> fail_commit;

/** What KVM_RUN does, if anything: returns an errno. */
inline std::function<int()> run;

/** While it is set, no commit returns, as if a vCPU slept in a page fault. */
inline std::atomic<bool> stall;
/** How many commits do not. */
inline std::atomic<int> stalled;

/** The descriptor of /dev/memslot that was bound last. */
inline std::atomic<int> memslot_fd;

/** Watched by covered(): a range that every layout must map. */
inline std::atomic<std::uint64_t> watch_gpa;
inline std::atomic<std::uint64_t> watch_size;

/** False once a layout had a hole in the watched range. */
bool covered();

} // namespace test::fake
