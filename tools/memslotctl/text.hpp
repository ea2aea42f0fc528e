// SPDX-License-Identifier: GPL-2.0
/* Numbers and slots in words. */
#pragma once

#include <memslot.hpp>

#include <array>
#include <cstdio>
#include <string>

namespace memslotctl {

/* Bytes with a binary unit: exact where a unit fits, else with one decimal place. */
[[nodiscard]] inline std::string human_size(std::uint64_t bytes)
{
	static constexpr std::array<const char *, 6> units{"KiB", "MiB", "GiB",
							   "TiB", "PiB", "EiB"};
	std::uint64_t unit = 1024;
	std::size_t which = 0;
	std::array<char, 32> text{};

	while (which + 1 < units.size() && bytes / unit >= 1024) {
		unit *= 1024;
		which++;
	}
	if (bytes % unit == 0)
		std::snprintf(text.data(), text.size(), "%llu %s",
			      static_cast<unsigned long long>(bytes / unit), units[which]);
	else
		std::snprintf(text.data(), text.size(), "%.1f %s",
			      static_cast<double>(bytes) / static_cast<double>(unit), units[which]);
	return text.data();
}

/* 0x and at least so many digits. */
[[nodiscard]] inline std::string hex(std::uint64_t value, int digits = 1)
{
	std::array<char, 32> text{};

	std::snprintf(text.data(), text.size(), "0x%0*llx", digits,
		      static_cast<unsigned long long>(value));
	return text.data();
}

/* All that is special about a slot; empty for plain memory. */
[[nodiscard]] inline std::string flags_in_words(const memslot::slot_info &slot)
{
	std::string text;
	const auto add = [&text](bool is, const char *what) {
		if (is)
			text += (text.empty() ? "" : ", ") + std::string(what);
	};

	add(slot.readonly, "read-only");
	add(slot.log_dirty_pages, "dirty log");
	add(slot.guest_memfd, "guest_memfd");
	return text;
}

} // namespace memslotctl
