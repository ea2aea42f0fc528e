// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * A VM's memslots as KVM and the module would change them: written from their rules, independent of
 * the code under test, and slow.
 */
#pragma once

#include <cerrno>
#include <compare>
#include <cstdint>
#include <linux/kvm.h>
#include <linux/memslot.h>
#include <map>
#include <span>
#include <utility>

namespace test {

/** What KVM says without looking: guest physical addresses end here. */
inline constexpr std::uint64_t guest_end = 1ULL << 46;

class model {
public:
	struct slot {
		std::uint64_t gpa, size, hva;
		std::uint32_t flags;

		friend bool operator==(const slot &, const slot &) = default;
	};

	/** (address space, id) */
	using key = std::pair<unsigned, unsigned>;

	static constexpr unsigned max_slot = 32763;

	/** KVM's own slot, which no call sees: the APIC access page. */
	static constexpr slot internal{0xfee00000, 0x1000, 0, 0};

	friend bool operator==(const model &, const model &) = default;

	/** KVM_SET_USER_MEMORY_REGION; @p sane_flags are those the machine has. */
	int set_region(const kvm_userspace_memory_region &call)
	{
		const key which{call.slot >> 16, call.slot & 0xffff};

		if (call.flags & ~3U || (call.memory_size & 0xfff) ||
		    (call.guest_phys_addr & 0xfff) || (call.userspace_addr & 0xfff) ||
		    which.first > 1 || which.second > max_slot)
			return EINVAL;
		if (call.guest_phys_addr + call.memory_size < call.guest_phys_addr)
			return EINVAL;

		const auto old = slots.find(which);

		if (!call.memory_size) {
			if (old == slots.end())
				return EINVAL;
			slots.erase(old);
			return 0;
		}

		const slot wanted{call.guest_phys_addr, call.memory_size, call.userspace_addr,
				  call.flags};

		if (old != slots.end()) {
			if (old->second.size != wanted.size || old->second.hva != wanted.hva ||
			    (old->second.flags ^ wanted.flags) & KVM_MEM_READONLY)
				return EINVAL;
			if (old->second == wanted)
				return 0;
		}
		if ((old == slots.end() || old->second.gpa != wanted.gpa) &&
		    overlaps(which, wanted))
			return EEXIST;
		if (wanted.gpa + wanted.size > guest_end)
			return EINVAL;
		slots[which] = wanted;
		return 0;
	}

	/** MEMSLOT_IOC_COMMIT. */
	int commit(std::span<const memslot_entry> entries, bool test_only)
	{
		model after = *this;
		std::map<key, int> named;

		for (const memslot_entry &entry : entries) {
			const key which{entry.address_space, entry.slot};

			if (entry.slot > max_slot || entry.address_space > 1 || entry.reserved ||
			    named[which]++)
				return EINVAL;
			if (entry.flags & ~3U)
				return EOPNOTSUPP;
			if (entry.memory_size &&
			    entry.guest_phys_addr + entry.memory_size > guest_end)
				return EINVAL;
			if (entry.memory_size)
				after.slots[which] = {entry.guest_phys_addr, entry.memory_size,
						      entry.userspace_addr, entry.flags};
			else if (!after.slots.erase(which))
				return ENOENT;
		}
		for (const auto &[which, one] : after.slots) {
			if (named.contains(which) && after.overlaps(which, one))
				return EEXIST;
		}
		if (!test_only)
			*this = after;
		return 0;
	}

	/** True if all of the range is mapped in address space 0. */
	[[nodiscard]] bool covers(std::uint64_t gpa, std::uint64_t size) const
	{
		for (std::uint64_t at = gpa; at < gpa + size; at += 0x1000) {
			bool found = false;

			for (const auto &[which, one] : slots)
				found |= !which.first && one.gpa <= at && at < one.gpa + one.size;
			if (!found)
				return false;
		}
		return true;
	}

	std::map<key, slot> slots;

private:
	[[nodiscard]] bool overlaps(key which, const slot &wanted) const
	{
		const auto meet = [&wanted](const slot &other) {
			return wanted.gpa < other.gpa + other.size &&
			       other.gpa < wanted.gpa + wanted.size;
		};

		if (meet(internal))
			return true;
		for (const auto &[other, one] : slots) {
			if (other.first == which.first && other != which && meet(one))
				return true;
		}
		return false;
	}
};

/** A call of a VMM. */
inline kvm_userspace_memory_region call(unsigned slot, std::uint64_t gpa, std::uint64_t size,
					std::uint64_t hva, std::uint32_t flags = 0)
{
	return {slot, flags, gpa, size, hva};
}

} // namespace test
