// SPDX-License-Identifier: GPL-2.0
/* The range that vCPUs visit, and that is split and merged under them: three changes each time. */
#pragma once

#include "scenario.hpp"
#include "stamped_memory.hpp"

#include <vector>

namespace guests {

class split_range {
public:
	static constexpr std::uint64_t pages = 64;

	[[nodiscard]] static std::vector<location> visited()
	{
		std::vector<location> all;

		append(all, 0, pages, fixed);
		return all;
	}

private:
	static constexpr std::uint64_t part = pages / 4;

	stamped_memory memory_{pages};

public:
	const layout whole{memory_.at(0, 0, pages, 0)};
	const layout split{
		memory_.at(0, 0, part, 0),
		memory_.at(1, part, pages - 2 * part, part),
		memory_.at(2, pages - part, part, pages - part),
	};
};

} // namespace guests
