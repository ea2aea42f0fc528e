// SPDX-License-Identifier: GPL-2.0
#include "say.hpp"

#include "raw_syscall.hpp"

#include <algorithm>
#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <cstring>

namespace memslot_run {

void say(const char *format, ...)
{
	char line[256] = "memslot-run: ";
	const std::size_t prefix = std::strlen(line);
	va_list args;

	va_start(args, format);
	/* The newline takes the place of the final 0 */
	const int wanted = std::vsnprintf(line + prefix, sizeof(line) - prefix, format, args);
	va_end(args);

	const std::size_t length =
		std::min(prefix + static_cast<std::size_t>(std::max(wanted, 0)), sizeof(line) - 1);

	line[length] = '\n';
	raw_syscall(SYS_write, 2, arg(line), static_cast<long>(length + 1));
}

} // namespace memslot_run
