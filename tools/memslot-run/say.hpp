// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * What the library tells the user of the VMM.
 */
#pragma once

namespace memslot_run {

/** A line on standard error; it needs no memory and takes no lock. */
[[gnu::format(printf, 1, 2)]] void say(const char *format, ...);

} // namespace memslot_run
