// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * Whether this process is the one whose VMs the library's memory tells of.
 */
#pragma once

#include <cstdint>

namespace memslot_run::process {

/** What has become of the process since it was looked at last. */
enum class kind : std::uint8_t {
	/** it is the one */
	same,
	/**
	 * It is a child with a copy of the memory, however it was made: _Fork() and clone() run no
	 * handlers.  None of the VMs is its own.
	 */
	copy,
	/** it is a child that uses the memory itself, as vfork() makes it, with other descriptors
	 */
	sharing,
};

/** Looks; a copy is found without a system call. */
kind look() noexcept;

/** True unless it is a copy, which must not believe the memory, nor its locks. */
bool is_original() noexcept;

/** The copy has put the memory right: it is the one from now on. */
void settle() noexcept;

} // namespace memslot_run::process
