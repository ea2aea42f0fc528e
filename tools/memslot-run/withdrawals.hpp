// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * Which memory of VMs is withdrawn just now: a vCPU that meets it runs again when it is back.
 */
#pragma once

#include "clock.hpp"
#include "futex.hpp"

#include <atomic>
#include <climits>
#include <cstdint>

namespace memslot_run {

/**
 * The transactions of all VMs that have withdrawn memory: what a vCPU needs to know when its
 * KVM_RUN failed.
 */
class transactions {
public:
	/** One begins: before a vCPU can meet what it withdraws. */
	void begin() noexcept
	{
		open_.fetch_add(1);
	}

	/** One is over: after a vCPU could. */
	void end() noexcept
	{
		/* In this order: who finds none open finds that one has ended */
		ended_.fetch_add(1);
		open_.fetch_sub(1);
		futex_wake(ended_, INT_MAX);
	}

	/** How many have ended. */
	[[nodiscard]] std::uint32_t ended() const noexcept
	{
		return ended_.load();
	}

	/** True if there was one at any time since so many had ended. */
	[[nodiscard]] bool any_since(std::uint32_t ended) const noexcept
	{
		return open_.load() || ended_.load() != ended;
	}

	/**
	 * Sleeps until one more has ended, or a signal came, but not long: KVM_RUN tells what else
	 * the VMM wants of its vCPU, by immediate_exit or a signal that only KVM_RUN lets through.
	 */
	void wait(std::uint32_t ended) noexcept
	{
		const timespec time = to_timespec(1'000'000);

		futex_wait(ended_, ended, &time);
	}

	/** None is open: for a copy of this process. */
	void abandon() noexcept
	{
		open_.store(0);
	}

private:
	std::atomic<unsigned> open_{0};
	futex_word ended_{0};
};

extern constinit transactions withdrawn;

} // namespace memslot_run
