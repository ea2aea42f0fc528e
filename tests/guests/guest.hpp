// SPDX-License-Identifier: GPL-2.0
/* What the VMM and guest.S share.  guest.S knows the offsets and the special values as well. */
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

extern "C" {
extern const std::byte guest_code[];
extern const std::byte guest_code_end[];
extern const std::byte location_code[];
extern const std::byte location_code_end[];
}

namespace guests {

inline constexpr std::uint64_t page_size = 4096;

/* What a guest reads where there is no memory */
inline constexpr std::uint64_t hole = ~0ULL;

/* For location::bias: memory that no commit changes, and the version that it has for ever */
inline constexpr std::uint64_t fixed = ~0ULL;
inline constexpr std::uint64_t fixed_version = 1;

/* The pages that a vCPU touches one after the other, as one word: it may change while the vCPU
 * runs. */
struct watched_pages {
	/* in pages of 4 KiB */
	std::uint64_t first_gfn : 31;
	/* each is written to as well */
	std::uint64_t writes : 1;
	/* 0: the vCPU does not watch */
	std::uint64_t pages : 32;
};

/* What a vCPU counts, alone in its page; the rest of the page is its stack. */
struct vcpu_page {
	/* passes over all locations */
	std::uint64_t loops;
	/* the last commit of which this vCPU has seen anything through its page tables */
	std::uint64_t newest;
	/* how often newest rose */
	std::uint64_t versions;
	/* an older commit's memory, although this vCPU had seen a newer one's */
	std::uint64_t torn;
	/* the same, but it was another vCPU that had seen the newer one's */
	std::uint64_t torn_across;
	/* reads that found no memory */
	std::uint64_t holes;
	/* from the VMM: the last store to the mailbox */
	std::uint64_t emulated;
	/* reads made by KVM's emulator */
	std::uint64_t emulated_reads;
	/* other memory where it never changes */
	std::uint64_t wrong;
	/* from the VMM: guest address of a VMCB, 0 for a vCPU without a guest of its own */
	std::uint64_t vmcb;
	/* passes made by that guest; they count as loops as well */
	std::uint64_t nested_loops;
	/* it found no memory, or no page table */
	std::uint64_t nested_faults;
	/* it ended in yet another way than after a pass */
	std::uint64_t nested_errors;
	/* from the VMM: guest address of a vmx_page, for a guest with Intel's VMX instead of a VMCB
	 */
	std::uint64_t vmx;
	/* from the VMM: watched_pages; before the vCPU runs it says whether there are any at all */
	std::uint64_t watch;
	/* of watched pages; a round of all of them counts in loops */
	std::uint64_t touches;
	/* most ticks of the TSC between two touches, since the VMM last set it to 0 */
	std::uint64_t longest;
	/* gaps[n]: how many of 2^n and more ticks, but fewer than 2^(n + 1), between two touches */
	std::array<std::uint64_t, 64> gaps;
};

/* A field of a VMCS, and what VMWRITE shall write to it. */
struct vmcs_field {
	std::uint64_t encoding;
	std::uint64_t value;
};

inline constexpr std::size_t max_vmcs_fields = 128;

/* From the VMM: how to run a guest with VMX. */
struct vmx_page {
	/* guest addresses of what VMXON needs, and of a VMCS */
	std::uint64_t vmxon_region;
	std::uint64_t vmcs;
	/* guest address of the end of fields */
	std::uint64_t end;
	std::array<vmcs_field, max_vmcs_fields> fields;
};

/* One place in the range under test. */
struct location {
	/* guest addresses of a version in a data word, and of code that returns one */
	std::uint64_t data;
	std::uint64_t code;
	/* version + bias is the commit since which the memory is here */
	std::uint64_t bias;
};

inline constexpr std::size_t max_locations = 64;

/* One page for all vCPUs. */
struct shared_page {
	/* the last commit of which any vCPU has seen anything through its page tables */
	std::uint64_t newest;
	/* guest address without memory; a store to it reaches the VMM */
	std::uint64_t mailbox;
	/* guest address of the end of locations */
	std::uint64_t end;
	/* guest addresses of memory that a pass touches besides, and of its end */
	std::uint64_t other;
	std::uint64_t other_end;
	std::array<location, max_locations> locations;
};

static_assert(offsetof(vcpu_page, newest) == 8 && offsetof(vcpu_page, versions) == 16 &&
	      offsetof(vcpu_page, torn) == 24 && offsetof(vcpu_page, torn_across) == 32 &&
	      offsetof(vcpu_page, holes) == 40 && offsetof(vcpu_page, emulated) == 48 &&
	      offsetof(vcpu_page, emulated_reads) == 56 && offsetof(vcpu_page, wrong) == 64 &&
	      offsetof(vcpu_page, vmcb) == 72 && offsetof(vcpu_page, nested_loops) == 80 &&
	      offsetof(vcpu_page, nested_faults) == 88 &&
	      offsetof(vcpu_page, nested_errors) == 96 && offsetof(vcpu_page, vmx) == 104 &&
	      offsetof(vcpu_page, watch) == 112 && offsetof(vcpu_page, touches) == 120 &&
	      offsetof(vcpu_page, longest) == 128 && offsetof(vcpu_page, gaps) == 136);
static_assert(sizeof(watched_pages) == 8);
static_assert(sizeof(vmcs_field) == 16 && offsetof(vmcs_field, value) == 8);
static_assert(offsetof(vmx_page, vmxon_region) == 0 && offsetof(vmx_page, vmcs) == 8 &&
	      offsetof(vmx_page, end) == 16 && offsetof(vmx_page, fields) == 24);
static_assert(sizeof(vmx_page) <= page_size);
static_assert(offsetof(shared_page, mailbox) == 8 && offsetof(shared_page, end) == 16 &&
	      offsetof(shared_page, other) == 24 && offsetof(shared_page, other_end) == 32 &&
	      offsetof(shared_page, locations) == 40);
static_assert(sizeof(location) == 24 && offsetof(location, code) == 8 &&
	      offsetof(location, bias) == 16);
static_assert(sizeof(shared_page) <= page_size);

} // namespace guests
