// SPDX-License-Identifier: GPL-2.0
/*
 * A picture of guest-physical memory: slots in the order of their addresses, gaps folded.  A slot's
 * length grows with the logarithm of its size, or the BIOS could not be seen beside the RAM.
 */
#pragma once

#include <memslot.hpp>

#include <span>
#include <string>
#include <vector>

namespace memslotctl {

/* What a picture is of. */
struct subject {
	/* for the caption, in printable ASCII, say "VM 0 of process 12 (qemu)" */
	std::string vm;
	std::uint32_t address_space = 0;
	/* sorted by guest address */
	std::span<const memslot::slot_info> slots;
};

/* What a terminal can show. */
struct terminal {
	unsigned int columns = 80;
	bool utf8 = false;
	bool colour = false;
};

/* A slot, or a gap between two; never empty. */
struct piece {
	/* nullptr: a gap */
	const memslot::slot_info *slot;
	std::uint64_t begin;
	std::uint64_t bytes;
};

/* All of it, gaps included; what lies beyond the last slot is not. */
[[nodiscard]] std::vector<piece> pieces(std::span<const memslot::slot_info> slots);

/* Lines for a terminal. */
[[nodiscard]] std::string draw(std::span<const memslot::slot_info> slots, const terminal &on);

/* An SVG document, the subjects side by side. */
[[nodiscard]] std::string svg(std::span<const subject> subjects);

} // namespace memslotctl
