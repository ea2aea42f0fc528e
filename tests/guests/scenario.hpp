// SPDX-License-Identifier: GPL-2.0
/* Sequences of layouts over one range of guest memory, each layout covering all that vCPUs visit.
 */
#pragma once

#include "vm.hpp"

#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace guests {

/* All slots under test at one moment. */
using layout = std::vector<memslot::region>;

/* Versions below are what memory holds before anything happened. */
inline constexpr std::uint64_t first_version = 2;

class scenario {
public:
	virtual ~scenario() = default;

	/*
	 * The layout of this version; called with first_version and then with each next one.
	 * Stamps the version into the memory that the layout brings in, before anybody can see it.
	 */
	virtual layout next(std::uint64_t version) = 0;

	/* What vCPUs visit. */
	[[nodiscard]] virtual std::vector<location> locations() const = 0;
};

/* All names, in the order in which to run them. */
std::span<const std::string_view> scenario_names();

/* Throws std::invalid_argument for a name that is not one of them. */
std::unique_ptr<scenario> make_scenario(std::string_view name);

/*
 * The calls of KVM_SET_USER_MEMORY_REGION that lead from one layout to another, slot by slot as
 * VMMs do it: a memory_size of 0 deletes.
 */
layout one_by_one(const layout &from, const layout &to);

/* Makes these calls. */
void change_one_by_one(vm &vm, const layout &from, const layout &to);

/* The same as one batch; what it held before is dropped. */
void make_batch(memslot::batch &batch, const layout &from, const layout &to);

} // namespace guests
