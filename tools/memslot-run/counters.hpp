// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * The counters that the launcher reports.
 */
#pragma once

#include "statistics.hpp"

namespace memslot_run {

/** The launcher's, or as long as there are none of it, the library's own. */
statistics &counters() noexcept;

/** Finds the launcher's; without them the library works all the same. */
void share_counters();

} // namespace memslot_run
