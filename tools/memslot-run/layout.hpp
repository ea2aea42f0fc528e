// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * The memslots of one VM, as KVM would have them after every call made so far.
 */
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace memslot_run {

/** What a slot maps. */
struct region {
	std::uint64_t guest_phys_addr;
	/** bytes; 0: there is no such slot */
	std::uint64_t memory_size;
	std::uint64_t userspace_addr;
	std::uint32_t flags;

	friend bool operator==(const region &, const region &) = default;

	[[nodiscard]] bool present() const noexcept
	{
		return memory_size != 0;
	}

	/** First guest physical address behind it. */
	[[nodiscard]] std::uint64_t guest_end() const noexcept
	{
		return guest_phys_addr + memory_size;
	}
};

/**
 * The slots of all address spaces.  An object of zero bytes is an empty layout, and memory that no
 * slot needs is never touched: it is large, and lives in anonymous memory.
 */
class layout {
public:
	static constexpr unsigned max_spaces = 2;
	/** KVM_MEM_SLOTS_NUM */
	static constexpr unsigned max_ids = 0x7fff;

	/** The slot's region, absent or not. */
	[[nodiscard]] const region &at(unsigned space, unsigned id) const noexcept
	{
		return spaces_[space].regions[id];
	}

	/** Any slot, for overlaps(): an id that none has. */
	static constexpr unsigned no_id = max_ids;

	/** True if the region overlaps a slot other than @p id. */
	[[nodiscard]] bool overlaps(unsigned space, unsigned id,
				    const region &wanted) const noexcept
	{
		const address_space &in = spaces_[space];
		const std::size_t first = in.position(wanted.guest_phys_addr);

		for (std::size_t i = first; i < in.count; i++) {
			if (in.regions[in.order[i]].guest_phys_addr >= wanted.guest_end())
				break;
			if (in.order[i] != id)
				return true;
		}
		/* Slots are disjoint: of those that start earlier, only the last can reach in */
		for (std::size_t i = first; i-- > 0;) {
			if (in.order[i] != id)
				return in.regions[in.order[i]].guest_end() > wanted.guest_phys_addr;
		}
		return false;
	}

	/** Whether slots map all of the guest addresses of this region. */
	[[nodiscard]] bool covers(unsigned space, const region &wanted) const noexcept
	{
		return !gap(space, wanted.guest_phys_addr, wanted.guest_end()).present();
	}

	/** The first of these guest addresses that no slot maps, and how far that goes. */
	[[nodiscard]] region gap(unsigned space, std::uint64_t from,
				 std::uint64_t end) const noexcept
	{
		const address_space &in = spaces_[space];
		std::uint64_t next = end;
		std::size_t i = in.position(from);

		/* The one that starts earlier may reach in */
		if (i > 0)
			i--;
		for (; i < in.count && from < end; i++) {
			const region &one = in.regions[in.order[i]];

			if (one.guest_phys_addr > from) {
				next = std::min(end, one.guest_phys_addr);
				break;
			}
			from = std::max(from, one.guest_end());
		}
		return from < end ? region{.guest_phys_addr = from,
					   .memory_size = next - from,
					   .userspace_addr = 0,
					   .flags = 0}
				  : region{};
	}

	/** Gives the slot a region that overlaps no other, or none. */
	void set(unsigned space, unsigned id, const region &wanted) noexcept
	{
		address_space &in = spaces_[space];
		std::uint16_t *const order = in.order.data();

		if (in.regions[id].present()) {
			std::uint16_t *const at =
				order + in.position(in.regions[id].guest_phys_addr);

			std::copy(at + 1, order + in.count, at);
			in.count--;
		}
		if (wanted.present()) {
			std::uint16_t *const at = order + in.position(wanted.guest_phys_addr);

			std::copy_backward(at, order + in.count, order + in.count + 1);
			*at = static_cast<std::uint16_t>(id);
			in.count++;
		}
		in.regions[id] = wanted;
	}

	/** Drops all slots. */
	void clear() noexcept
	{
		for (address_space &in : spaces_) {
			for (std::size_t i = 0; i < in.count; i++)
				in.regions[in.order[i]] = {};
			in.count = 0;
		}
	}

private:
	struct address_space {
		std::array<region, max_ids> regions;
		/** ids of the slots there are, by guest address */
		std::array<std::uint16_t, max_ids> order;
		std::size_t count;

		/** Where in the order the first slot is that starts at this address or above. */
		[[nodiscard]] std::size_t position(std::uint64_t address) const noexcept
		{
			const auto found =
				std::lower_bound(order.data(), order.data() + count, address,
						 [this](std::uint16_t id, std::uint64_t than) {
							 return regions[id].guest_phys_addr < than;
						 });

			return static_cast<std::size_t>(found - order.data());
		}
	};

	std::array<address_space, max_spaces> spaces_;
};

} // namespace memslot_run
