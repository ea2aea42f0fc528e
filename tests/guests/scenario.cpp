// SPDX-License-Identifier: GPL-2.0
#include "scenario.hpp"

#include "stamped_memory.hpp"

#include <stdexcept>

namespace guests {

namespace {

constexpr std::uint64_t range_pages = 64;
constexpr std::uint64_t half = range_pages / 2;

static_assert(range_pages <= max_locations);

std::vector<location> whole_range()
{
	std::vector<location> all;

	append(all, 0, range_pages, 0);
	return all;
}

/*
 * In turn one half is a single slot and the other is three, of which the outer ones keep their host
 * address and the middle one has other host memory.
 */
class splitting final : public scenario {
public:
	layout next(std::uint64_t version) override
	{
		layout want;

		for (const std::uint64_t side : {0, 1}) {
			const std::uint64_t begin = side * half;
			const auto slot = static_cast<std::uint32_t>(side * 3);

			if ((version + side) % 2) {
				other_.stamp(begin + edge, middle, version);
				want.push_back(home_.at(slot, begin, edge, begin));
				want.push_back(
					other_.at(slot + 1, begin + edge, middle, begin + edge));
				want.push_back(home_.at(slot + 2, begin + edge + middle, edge,
							begin + edge + middle));
			} else {
				home_.stamp(begin + edge, middle, version);
				want.push_back(home_.at(slot, begin, half, begin));
			}
		}
		return want;
	}

	[[nodiscard]] std::vector<location> locations() const override
	{
		std::vector<location> all;

		for (const std::uint64_t begin : {std::uint64_t{0}, half}) {
			append(all, begin, edge, fixed);
			append(all, begin + edge, middle, 0);
			append(all, begin + edge + middle, edge, fixed);
		}
		return all;
	}

private:
	static constexpr std::uint64_t edge = half / 4;
	static constexpr std::uint64_t middle = half - 2 * edge;

	stamped_memory home_{range_pages};
	stamped_memory other_{range_pages};
};

/* Four slots stay where they are and get other host memory. */
class replacing final : public scenario {
public:
	layout next(std::uint64_t version) override
	{
		stamped_memory &memory = version % 2 ? odd_ : even_;
		layout want;

		memory.stamp(0, range_pages, version);
		for (std::uint32_t slot = 0; slot < slots; slot++)
			want.push_back(memory.at(slot, slot * each, each, slot * each));
		return want;
	}

	[[nodiscard]] std::vector<location> locations() const override
	{
		return whole_range();
	}

private:
	static constexpr std::uint32_t slots = 4;
	static constexpr std::uint64_t each = range_pages / slots;

	stamped_memory odd_{range_pages};
	stamped_memory even_{range_pages};
};

/*
 * The slot in the second half goes away, the one in the first half moves to where it was, and a new
 * slot takes the first half.  The second half is thus always one version behind.
 */
class moving final : public scenario {
public:
	layout next(std::uint64_t version) override
	{
		const auto moved = static_cast<std::uint32_t>((version - 1) % memory_.size());
		const auto fresh = static_cast<std::uint32_t>(version % memory_.size());

		memory_[fresh].stamp(0, half, version);
		return {
			memory_[moved].at(moved, half, half, 0),
			memory_[fresh].at(fresh, 0, half, 0),
		};
	}

	[[nodiscard]] std::vector<location> locations() const override
	{
		std::vector<location> all;

		append(all, 0, half, 0);
		append(all, half, half, 1);
		return all;
	}

private:
	std::array<stamped_memory, 3> memory_{
		stamped_memory(half),
		stamped_memory(half),
		stamped_memory(half),
	};
};

/* Two slots change places. */
class swapping final : public scenario {
public:
	layout next(std::uint64_t version) override
	{
		const std::uint32_t front = version % 2;
		const std::uint32_t back = 1 - front;

		memory_[front].stamp(0, half, version, place::first);
		memory_[back].stamp(0, half, version, place::second);
		return {
			memory_[front].at(front, 0, half, 0),
			memory_[back].at(back, half, half, 0),
		};
	}

	[[nodiscard]] std::vector<location> locations() const override
	{
		std::vector<location> all;

		append(all, 0, half, 0, place::first);
		append(all, half, half, 0, place::second);
		return all;
	}

private:
	std::array<stamped_memory, 2> memory_{stamped_memory(half), stamped_memory(half)};
};

/* The border between two slots goes back and forth: one grows by what the other shrinks. */
class resizing final : public scenario {
public:
	layout next(std::uint64_t version) override
	{
		const std::uint64_t border = version % 2 ? high : low;

		(version % 2 ? left_ : right_).stamp(low, high - low, version);
		return {
			left_.at(0, 0, border, 0),
			right_.at(1, border, range_pages - border, border),
		};
	}

	[[nodiscard]] std::vector<location> locations() const override
	{
		std::vector<location> all;

		append(all, 0, low, fixed);
		append(all, low, high - low, 0);
		append(all, high, range_pages - high, fixed);
		return all;
	}

private:
	static constexpr std::uint64_t low = range_pages / 4;
	static constexpr std::uint64_t high = range_pages - low;

	stamped_memory left_{range_pages};
	stamped_memory right_{range_pages};
};

/*
 * Memory that no vCPU visits comes and goes, whole and in parts, while all that they visit is
 * replaced.
 */
class uncovering final : public scenario {
public:
	layout next(std::uint64_t version) override
	{
		stamped_memory &memory = version % 2 ? odd_ : even_;
		layout want;

		memory.stamp(0, range_pages, version);
		want.push_back(memory.at(0, 0, range_pages, 0));
		if (version % 2) {
			want.push_back(aside_.at(1, beside, 16, 0));
			want.push_back(aside_.at(2, beside + 32, 4, 32));
		} else {
			want.push_back(aside_.at(1, beside + 4, 8, 4));
			want.push_back(aside_.at(3, beside + 40, 4, 40));
		}
		return want;
	}

	[[nodiscard]] std::vector<location> locations() const override
	{
		return whole_range();
	}

private:
	static constexpr std::uint64_t beside = 2 * range_pages;

	stamped_memory odd_{range_pages};
	stamped_memory even_{range_pages};
	stamped_memory aside_{range_pages};
};

constexpr std::array<std::string_view, 6> names{
	"split-merge", "replace", "move", "swap", "resize", "uncover",
};

bool same(const memslot::region &one, const memslot::region &other)
{
	return one.slot == other.slot && one.guest_phys_addr == other.guest_phys_addr &&
	       one.memory_size == other.memory_size && one.userspace_addr == other.userspace_addr &&
	       one.log_dirty_pages == other.log_dirty_pages && one.readonly == other.readonly;
}

bool overlap(const memslot::region &one, const memslot::region &other)
{
	return one.guest_phys_addr < other.guest_phys_addr + other.memory_size &&
	       other.guest_phys_addr < one.guest_phys_addr + one.memory_size;
}

/* KVM takes a slot to another guest address, or switches its dirty log, if nothing else changes. */
bool can_stay(const memslot::region &from, const memslot::region &to)
{
	return from.slot == to.slot && from.memory_size == to.memory_size &&
	       from.userspace_addr == to.userspace_addr && from.readonly == to.readonly;
}

memslot::region gone(memslot::region region)
{
	region.memory_size = 0;
	return region;
}

} // namespace

std::span<const std::string_view> scenario_names()
{
	return names;
}

std::unique_ptr<scenario> make_scenario(std::string_view name)
{
	if (name == "split-merge")
		return std::make_unique<splitting>();
	if (name == "replace")
		return std::make_unique<replacing>();
	if (name == "move")
		return std::make_unique<moving>();
	if (name == "swap")
		return std::make_unique<swapping>();
	if (name == "resize")
		return std::make_unique<resizing>();
	if (name == "uncover")
		return std::make_unique<uncovering>();
	throw std::invalid_argument("no scenario is called " + std::string(name));
}

layout one_by_one(const layout &from, const layout &to)
{
	layout calls;
	layout now = from;

	for (const memslot::region &want : to) {
		if (std::ranges::any_of(now, [&](const auto &old) { return same(old, want); }))
			continue;
		for (auto old = now.begin(); old != now.end();) {
			const bool in_the_way = old->slot == want.slot ? !can_stay(*old, want)
								       : overlap(*old, want);

			if (in_the_way) {
				calls.push_back(gone(*old));
				old = now.erase(old);
			} else {
				++old;
			}
		}
		calls.push_back(want);
		std::erase_if(now, [&](const auto &old) { return old.slot == want.slot; });
		now.push_back(want);
	}
	for (const memslot::region &old : now) {
		if (std::ranges::none_of(to,
					 [&](const auto &want) { return want.slot == old.slot; }))
			calls.push_back(gone(old));
	}
	return calls;
}

void change_one_by_one(vm &vm, const layout &from, const layout &to)
{
	for (const memslot::region &call : one_by_one(from, to))
		vm.set_region(call);
}

void make_batch(memslot::batch &batch, const layout &from, const layout &to)
{
	batch.clear();
	for (const memslot::region &old : from)
		batch.remove(old.slot, old.address_space);
	for (const memslot::region &want : to)
		batch.set(want);
}

} // namespace guests
