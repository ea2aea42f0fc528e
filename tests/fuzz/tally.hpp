/* SPDX-License-Identifier: GPL-2.0 */
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string_view>

namespace fuzz {

enum class call {
	info,
	bind,
	stage,
	commit,
	reset,
	query,
	unknown,    /* numbers that the device does not have */
	set_region, /* from here on KVM's own */
	dirty_log,
	clear_dirty_log,
	create_vcpu,
	count_of_calls
};

inline constexpr std::array<std::string_view, static_cast<std::size_t>(call::count_of_calls)>
	call_names{"INFO",
		   "BIND",
		   "STAGE",
		   "COMMIT",
		   "RESET",
		   "QUERY",
		   "unknown",
		   "kvm:SET_USER_MEMORY_REGION",
		   "kvm:GET_DIRTY_LOG",
		   "kvm:CLEAR_DIRTY_LOG",
		   "kvm:CREATE_VCPU"};

/*
 * What all processes have called and what came of it; lives in memory that they share, so that
 * those who die have been counted.
 */
class tally {
public:
	static tally &make();

	/* @result: 0 or more, or a negative errno */
	void note(call what, long result);

	/* Calls of the device's ioctls */
	std::uint64_t device_calls() const;

	/* So many calls ended with that errno (0: succeeded). */
	std::uint64_t count(call what, int error) const;

	/* One line per call: its name, how often, and how often with which errno. */
	void print() const;

	/* Something that must not be: the first one's description stays. */
	void complain(const char *format, ...) __attribute__((format(printf, 2, 3)));
	const char *complaint() const;

	/* One that a round makes when it is set up, so that the supervisor may kill it from then
	 * on. */
	std::atomic<std::uint64_t> ready{0};

private:
	static constexpr std::size_t most_errors = 134;

	std::array<std::array<std::atomic<std::uint64_t>, most_errors>, call_names.size()>
		counts_{};
	std::atomic<bool> complaining_{false};
	std::atomic<bool> complained_{false};
	std::array<char, 512> complaint_{};
};

} // namespace fuzz
