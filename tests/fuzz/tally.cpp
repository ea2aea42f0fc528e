// SPDX-License-Identifier: GPL-2.0
#include "tally.hpp"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <new>
#include <sys/mman.h>
#include <system_error>

namespace fuzz {

tally &tally::make()
{
	void *memory = mmap(nullptr, sizeof(tally), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		throw std::system_error(errno, std::generic_category(), "mmap");
	return *new (memory) tally;
}

void tally::note(call what, long result)
{
	const auto error = static_cast<std::size_t>(result < 0 ? -result : 0);

	counts_[static_cast<std::size_t>(what)][std::min(error, most_errors - 1)].fetch_add(1);
}

std::uint64_t tally::count(call what, int error) const
{
	return counts_[static_cast<std::size_t>(what)][static_cast<std::size_t>(error)].load();
}

std::uint64_t tally::device_calls() const
{
	std::uint64_t sum = 0;

	for (std::size_t i = 0; i <= static_cast<std::size_t>(call::unknown); i++)
		for (const auto &n : counts_[i])
			sum += n.load();
	return sum;
}

void tally::print() const
{
	for (std::size_t i = 0; i < call_names.size(); i++) {
		std::uint64_t sum = 0;

		for (const auto &n : counts_[i])
			sum += n.load();
		std::printf("%-26s %9" PRIu64 ":", call_names[i].data(), sum);
		for (std::size_t error = 0; error < most_errors; error++) {
			const std::uint64_t n = counts_[i][error].load();
			const char *name = error ? strerrorname_np(static_cast<int>(error)) : "ok";

			if (n)
				std::printf(" %s=%" PRIu64, name ? name : "other", n);
		}
		std::printf("\n");
	}
}

void tally::complain(const char *format, ...)
{
	va_list arguments;

	if (complaining_.exchange(true))
		return;
	va_start(arguments, format);
	std::vsnprintf(complaint_.data(), complaint_.size(), format, arguments);
	va_end(arguments);
	complained_ = true;
}

const char *tally::complaint() const
{
	return complained_ ? complaint_.data() : nullptr;
}

} // namespace fuzz
