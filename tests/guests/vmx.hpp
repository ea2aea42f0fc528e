// SPDX-License-Identifier: GPL-2.0
/*
 * What a vCPU needs to run a guest of its own with Intel's VMX.  The numbers are from Intel's
 * Software Developer's Manual (SDM).
 */
#pragma once

#include "guest.hpp"

#include <optional>
#include <vector>

namespace guests::vmx {

/* Registers that a guest in a guest begins with */
struct registers {
	std::uint64_t cr0;
	std::uint64_t cr3;
	std::uint64_t cr4;
	std::uint64_t rflags;
};

/* In an entry of EPT's tables: what may be done, and in one that maps a page its type of memory. */
inline constexpr std::uint64_t ept_all = 0b111;
inline constexpr std::uint64_t ept_write_back = 6 << 3;

/* Lets a vCPU execute VMXON, as firmware does. */
void enable(int vcpu);

/* What the regions for VMXON and for a VMCS begin with. */
std::uint32_t revision(int vcpu);

/* Whether guests in guests can have page tables of their own; not so where KVM shadows all. */
bool has_ept(int vcpu);

/*
 * All of a VMCS but the program counters and the stacks: a guest in the state of its parent, and
 * the parent's state for when it ends.  With a root, EPT translates its addresses.
 */
std::vector<vmcs_field> fields(int vcpu, const registers &state,
			       std::optional<std::uint64_t> ept_root);

/* The root of EPT's tables as a VMCS has it */
vmcs_field ept_pointer(std::uint64_t root);

} // namespace guests::vmx
