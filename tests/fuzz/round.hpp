/* SPDX-License-Identifier: GPL-2.0 */
#pragma once

#include "tally.hpp"

#include <cstdint>

namespace fuzz {

/*
 * VMs, files and threads that make calls; ends the process, in one of the ways in which processes
 * end.
 */
[[noreturn]] void run_round(std::uint64_t seed, std::uint64_t calls, tally &tally);

} // namespace fuzz
