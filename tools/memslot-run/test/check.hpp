// SPDX-License-Identifier: GPL-2.0
/** @file  Checks that say where and what, and go on. */
#pragma once

#include <iostream>
#include <source_location>
#include <string_view>

namespace test {

inline int checks;
inline int failures;

template <typename Got, typename Wanted>
void same(const Got &got, const Wanted &wanted, std::string_view what,
	  std::source_location where = std::source_location::current())
{
	checks++;
	if (got == wanted)
		return;
	failures++;
	std::cerr << where.file_name() << ':' << where.line() << ": " << what << ": got " << got
		  << ", wanted " << wanted << '\n';
}

inline void holds(bool is, std::string_view what,
		  std::source_location where = std::source_location::current())
{
	same(is, true, what, where);
}

/** Sums up; returns the exit status. */
inline int report(std::string_view name)
{
	std::cout << name << ": " << checks << " checks, " << failures << " failed\n";
	return failures != 0;
}

} // namespace test
