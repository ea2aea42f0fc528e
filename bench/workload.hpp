// SPDX-License-Identifier: GPL-2.0
/* Changes of memslots that VMMs make, as transactions that any way of making them can be timed
 * with. */
#pragma once

#include "scenario.hpp"

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace bench {

/* Where the memory that changes begins */
inline constexpr std::uint64_t changing_gpa = 1ULL << 30;

/* Where there is memory for vCPUs that look on, in a slot of its own that only the log changes */
inline constexpr std::uint64_t other_gpa = 128 << 20;
inline constexpr std::uint32_t other_slot = guests::first_test_slot;

/* Slots below are not a workload's */
inline constexpr std::uint32_t first_slot = other_slot + 1;

/* One change that the guest must see as one. */
struct transaction {
	/* what is compared with what: transactions of one kind */
	std::string kind;
	/* the slots that change, before and after */
	guests::layout from;
	guests::layout to;
};

/* What a transaction does, over and over, and what it does it to. */
class workload {
public:
	virtual ~workload() = default;

	/* The layouts that are changed, one after the other: how many. */
	[[nodiscard]] virtual std::size_t stages() const
	{
		return 1;
	}

	/* All slots of the workload, in each stage. */
	[[nodiscard]] virtual guests::layout base(std::size_t stage) = 0;

	/* Transactions that lead from that layout back to it. */
	[[nodiscard]] virtual std::vector<transaction> cycle(std::size_t stage) = 0;

	/* Memory among what changes that is there before and after; none by default. */
	[[nodiscard]] virtual guests::watched_pages touched() const
	{
		return {};
	}

	/* From the beginning of one transaction to that of the next, if that can be; 0: back to
	 * back. */
	[[nodiscard]] virtual std::chrono::nanoseconds period() const
	{
		return {};
	}

	/* Whether vCPUs that look on write, too. */
	[[nodiscard]] virtual bool writes() const
	{
		return false;
	}
};

/* What a workload changes. */
struct memory {
	const guests::host_memory &bytes;
	/* pages of page_size */
	std::uint64_t pages;
	/* that of vCPUs that look on */
	memslot::region other;
	/* all of it is touched, where a workload would choose a part around what changes */
	bool all_touched = false;
};

struct workload_kind {
	std::string_view name;
	std::unique_ptr<workload> (*make)(const memory &of);
};

/* All that there are. */
std::span<const workload_kind> workloads();

} // namespace bench
