// SPDX-License-Identifier: GPL-2.0
/** @file  Checks that say where and what, and go on. */
#pragma once

#include <iostream>
#include <string_view>

namespace test {

inline int checks;
inline int failures;

template <typename Got, typename Wanted>
void same(const Got &got, const Wanted &wanted, std::string_view what,
	  const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
	checks++;
	if (got == wanted)
		return;
	failures++;
	std::cerr << file << ':' << line << ": " << what << ": got " << got << ", wanted " << wanted
		  << '\n';
}

inline void holds(bool is, std::string_view what, const char *file = __builtin_FILE(),
		  int line = __builtin_LINE())
{
	same(is, true, what, file, line);
}

/** Sums up; returns the exit status. */
inline int report(std::string_view name)
{
	std::cout << name << ": " << checks << " checks, " << failures << " failed\n";
	return failures != 0;
}

} // namespace test
