// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * Time, in nanoseconds since some moment.
 */
#pragma once

#include <cstdint>
#include <ctime>

namespace memslot_run {

inline std::uint64_t now() noexcept
{
	timespec time{};

	clock_gettime(CLOCK_MONOTONIC, &time);
	return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 +
	       static_cast<std::uint64_t>(time.tv_nsec);
}

inline timespec to_timespec(std::uint64_t nanoseconds) noexcept
{
	return {static_cast<time_t>(nanoseconds / 1'000'000'000),
		static_cast<long>(nanoseconds % 1'000'000'000)};
}

} // namespace memslot_run
