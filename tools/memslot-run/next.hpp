// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * The functions behind the interposed ones.
 */
#pragma once

#include <algorithm>
#include <cstddef>
#include <dlfcn.h>

namespace memslot_run {

/** A string that can be a template argument. */
template <std::size_t Size>
struct symbol {
	constexpr symbol(const char (&name)[Size])
	{
		std::copy_n(name, Size, text);
	}

	char text[Size];
};

template <symbol Name, typename Function>
Function *find_next() noexcept
{
	return reinterpret_cast<Function *>(dlsym(RTLD_NEXT, Name.text));
}

/** Looked up while the library is loaded: later, the caller may be a signal handler. */
template <symbol Name, typename Function>
inline Function *next_function = find_next<Name, Function>();

/**
 * Calls the function of that name that comes after ours, the C library's as a rule.
 *
 * @tparam Name its name
 * @param ours the interposed function, for its type
 */
template <symbol Name, typename Function, typename... Args>
auto next(Function *ours [[maybe_unused]], Args... args)
{
	Function *function = next_function<Name, Function>;

	/* Another library's constructor can come here before ours ran */
	if (!function) [[unlikely]]
		function = find_next<Name, Function>();
	return function(args...);
}

} // namespace memslot_run
