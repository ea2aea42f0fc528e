// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * Counters that the launcher shares with the library in the VMM: memory of both, so that they
 * survive a VMM that dies by a signal.
 */
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace memslot_run {

/** Where the library finds the counters: a path, in the environment. */
inline constexpr const char *statistics_variable = "MEMSLOT_RUN_STATISTICS";

/** What made a batch go out. */
enum class moment : std::uint8_t {
	/** the collecting thread entered KVM_RUN */
	run,
	/** it released its last mutex */
	unlock,
	/** it was about to block, write, start a thread or fork */
	block,
	/** an ioctl needs the changes */
	ioctl,
	/** it holds no mutex, and no withdrawn memory is left without a slot */
	whole,
	/** the time was up */
	deadline,
	/** the batch was full */
	full,
	/** the VM's last descriptor was about to be closed */
	close,
};

/** Names of the moments, for the report. */
inline constexpr std::array moment_names{"run",	  "unlock",   "block", "ioctl",
					 "whole", "deadline", "full",  "close"};

using counter = std::atomic<std::uint64_t>;

static_assert(counter::is_always_lock_free);

/** All counters; zeroes are a valid start. */
struct statistics {
	/** processes that loaded the library */
	counter processes;
	/** VMs bound to /dev/memslot */
	counter vms;
	/** VMs that could not be bound */
	counter vms_passed;
	/** calls of the VMM that went through the module */
	counter changes;
	/** calls that went to KVM as they were */
	counter passed;
	/** all commits */
	counter commits;
	/** of the commits: memory was withdrawn */
	counter withdrawals;
	/** of the commits: a call that had to be true when it returned */
	counter at_once;
	/** KVM_RUN was made again, after a vCPU had met withdrawn memory */
	counter retries;
	/** entries of those commits */
	counter entries;
	/** of the commits: page faults in range waited */
	counter fenced;
	/** of the commits: vCPUs were parked */
	counter parked;
	/** batches that could not be committed and went to KVM call by call */
	counter failed;
	/** calls of those batches that KVM refused */
	counter lost;
	counter grace_periods;
	counter ns_in_commits;
	counter ns_longest_commit;
	/** time in the test-only commits of what is collected */
	counter ns_in_checks;
	/** all batches that ended a transaction, by what made them go out */
	std::array<counter, moment_names.size()> moments;
};

/** Adds to a counter. */
inline void count(counter &which, std::uint64_t how_many = 1) noexcept
{
	which.fetch_add(how_many, std::memory_order_relaxed);
}

/** Raises a counter to a value. */
inline void raise_to(counter &which, std::uint64_t value) noexcept
{
	std::uint64_t seen = which.load(std::memory_order_relaxed);

	while (seen < value &&
	       !which.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
	}
}

} // namespace memslot_run
