// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * Copies of the process, as fork() and others make them: they have no VMs of their own.
 */
#pragma once

namespace memslot_run {

/** Before anything is believed of what the memory tells. */
void notice_copy();

/** True if the descriptors that are known are this process's. */
bool has_our_descriptors();

} // namespace memslot_run
