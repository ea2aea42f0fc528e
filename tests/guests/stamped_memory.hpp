// SPDX-License-Identifier: GPL-2.0
/* Host memory with a version, data and code, in each page, and where vCPUs find them. */
#pragma once

#include "vm.hpp"

#include <cstring>
#include <vector>

namespace guests {

/*
 * A page can be stamped for two places: memory that changes places with other memory is visible all
 * the time, so that the version it shall have at the other place needs words of its own.
 */
enum class place : std::uint64_t { first, second };

constexpr std::uint64_t data_offset(place where)
{
	return static_cast<std::uint64_t>(where) * 1024;
}

constexpr std::uint64_t code_offset(place where)
{
	return data_offset(where) + 512;
}

/* Where the version is in location_code: after the opcode of mov $imm32, %eax */
inline constexpr std::uint64_t code_version_offset = 1;

class stamped_memory {
public:
	explicit stamped_memory(std::uint64_t pages) : memory_(pages)
	{
		for (std::uint64_t page = 0; page < pages; page++) {
			for (const place where : {place::first, place::second})
				std::copy(location_code, location_code_end,
					  memory_.page(page) + code_offset(where));
		}
		stamp(0, pages, fixed_version);
		stamp(0, pages, fixed_version, place::second);
	}

	void stamp(std::uint64_t first, std::uint64_t pages, std::uint64_t version,
		   place where = place::first)
	{
		const auto code_version = static_cast<std::uint32_t>(version);

		for (std::uint64_t page = first; page < first + pages; page++) {
			std::byte *base = memory_.page(page);

			std::memcpy(base + data_offset(where), &version, sizeof(version));
			std::memcpy(base + code_offset(where) + code_version_offset, &code_version,
				    sizeof(code_version));
		}
	}

	/* Pages of this memory in a slot. */
	[[nodiscard]] memslot::region at(std::uint32_t slot, std::uint64_t gpa_page,
					 std::uint64_t pages, std::uint64_t first) const
	{
		return {
			.slot = first_test_slot + slot,
			.guest_phys_addr = range_gpa + gpa_page * page_size,
			.memory_size = pages * page_size,
			.userspace_addr = memory_.page(first),
		};
	}

private:
	host_memory memory_;
};

/* Appends one location per page. */
inline void append(std::vector<location> &to, std::uint64_t first, std::uint64_t pages,
		   std::uint64_t bias, place where = place::first)
{
	for (std::uint64_t page = first; page < first + pages; page++) {
		const std::uint64_t gpa = range_gpa + page * page_size;

		to.push_back({
			.data = gpa + data_offset(where),
			.code = gpa + code_offset(where),
			.bias = bias,
		});
	}
}

} // namespace guests
