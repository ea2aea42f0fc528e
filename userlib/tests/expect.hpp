// SPDX-License-Identifier: MIT
/* What the tests of memslot.hpp check with. */
#pragma once

#include <cstdio>

inline int failures;

/* clang 14 has no std::source_location */
inline void expect(bool what, const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
	if (what)
		return;
	std::fprintf(stderr, "%s:%d: not so\n", file, line);
	failures++;
}
