// SPDX-License-Identifier: GPL-2.0
#include "workload.hpp"

#include <algorithm>
#include <array>
#include <random>
#include <stdexcept>

namespace bench {

namespace {

using namespace std::chrono_literals;

using guests::layout;
using guests::page_size;
using memslot::region;

constexpr std::uint64_t pages_of_kib(std::uint64_t size)
{
	return size * 1024 / page_size;
}

/* Pages of a workload's memory in a slot; all page numbers count from its beginning. */
class slots {
public:
	explicit slots(const memory &of) : memory_(of)
	{
	}

	[[nodiscard]] region at(std::uint32_t slot, std::uint64_t gfn, std::uint64_t pages,
				std::uint64_t first, bool readonly = false) const
	{
		if (first + pages > memory_.pages)
			throw std::invalid_argument("this scenario needs more memory: --guest");
		return {
			.slot = first_slot + slot,
			.guest_phys_addr = changing_gpa + gfn * page_size,
			.memory_size = pages * page_size,
			.userspace_addr = memory_.bytes.page(first),
			.readonly = readonly,
		};
	}

	/* Pages from the one that is given on. */
	[[nodiscard]] static guests::watched_pages touch(std::uint64_t gfn, std::uint64_t pages)
	{
		return {
			.first_gfn = changing_gpa / page_size + gfn,
			.writes = 0,
			.pages = pages,
		};
	}

	[[nodiscard]] std::uint64_t pages() const
	{
		return memory_.pages;
	}

private:
	memory memory_;
};

/* Two layouts in turn. */
class there_and_back : public workload {
public:
	there_and_back(const char *there, const char *back) : there_(there), back_(back)
	{
	}

	[[nodiscard]] layout base(std::size_t) override
	{
		return before_;
	}

	[[nodiscard]] std::vector<transaction> cycle(std::size_t) override
	{
		return {{there_, before_, after_}, {back_, after_, before_}};
	}

protected:
	layout before_;
	layout after_;

private:
	const char *there_;
	const char *back_;
};

/* One slot becomes three around its middle, and one again. */
class splitting : public there_and_back {
public:
	splitting(const memory &of, std::uint64_t middle, bool readonly)
	    : there_and_back("split", "merge")
	{
		constexpr std::uint64_t around = 64;
		const slots slots(of);
		const std::uint64_t begin = of.pages / 2;
		const std::uint64_t end = begin + middle;

		before_ = {slots.at(0, 0, of.pages, 0)};
		after_ = {
			slots.at(0, 0, begin, 0),
			slots.at(1, begin, middle, begin, readonly),
			slots.at(2, end, of.pages - end, end),
		};
		touched_ = of.all_touched ? slots::touch(0, of.pages)
					  : slots::touch(begin - around, 2 * around);
	}

	[[nodiscard]] guests::watched_pages touched() const override
	{
		return touched_;
	}

private:
	guests::watched_pages touched_{};
};

/* A quarter of the memory in the middle, so that the bounds are those of huge pages, too. */
class split_merge final : public splitting {
public:
	explicit split_merge(const memory &of) : splitting(of, of.pages / 4, false)
	{
	}
};

/* One page in the middle is READONLY for a while. */
class ro_flip final : public splitting {
public:
	explicit ro_flip(const memory &of) : splitting(of, 1, true)
	{
	}
};

/* A window of a GPU into memory of the host's, 50 times a second. */
class window final : public there_and_back {
public:
	explicit window(const memory &of) : there_and_back("map", "unmap")
	{
		after_ = {slots(of).at(0, 0, pages_of_kib(1024), 0)};
	}

	[[nodiscard]] std::chrono::nanoseconds period() const override
	{
		return 10ms;
	}
};

/* A slot of 64 KiB goes round 19 host addresses, as a bank of a VGA adapter's memory. */
class banks final : public workload {
public:
	explicit banks(const memory &of) : slots_(of)
	{
	}

	[[nodiscard]] layout base(std::size_t) override
	{
		return bank(0);
	}

	[[nodiscard]] std::vector<transaction> cycle(std::size_t) override
	{
		std::vector<transaction> all;

		for (std::uint64_t i = 0; i < count; i++)
			all.push_back({"switch", bank(i), bank((i + 1) % count)});
		return all;
	}

	[[nodiscard]] guests::watched_pages touched() const override
	{
		return slots::touch(0, pages);
	}

	[[nodiscard]] std::chrono::nanoseconds period() const override
	{
		return 1s / (60 * count);
	}

private:
	static constexpr std::uint64_t count = 19;
	static constexpr std::uint64_t pages = pages_of_kib(64);

	[[nodiscard]] layout bank(std::uint64_t i) const
	{
		return {slots_.at(0, 0, pages, i * pages)};
	}

	slots slots_;
};

/*
 * A page at random becomes READONLY and is writable again, among more and more slots: what a
 * guest's secure kernel does to the pages of the other one.
 */
class vsm final : public workload {
public:
	explicit vsm(const memory &of) : slots_(of)
	{
		for (const std::uint64_t slots : {1, 64, 512, 4096}) {
			if (slots * 3 <= of.pages)
				slots_of_stage_.push_back(slots);
		}
	}

	[[nodiscard]] std::size_t stages() const override
	{
		return slots_of_stage_.size();
	}

	[[nodiscard]] layout base(std::size_t stage) override
	{
		layout all;

		for (std::uint64_t i = 0; i < slots_of_stage_[stage]; i++)
			all.push_back(piece(stage, i));
		return all;
	}

	[[nodiscard]] std::vector<transaction> cycle(std::size_t stage) override
	{
		const std::uint64_t count = slots_of_stage_[stage];
		const std::uint64_t i = random_() % count;
		const region whole = piece(stage, i);
		const std::uint64_t first = i * (slots_.pages() / count);
		const std::uint64_t pages = whole.memory_size / page_size;
		/* Neither the first nor the last */
		const std::uint64_t flipped = first + 1 + random_() % (pages - 2);
		const auto id = static_cast<std::uint32_t>(i);
		const auto spare = static_cast<std::uint32_t>(count);
		const layout before{whole};
		const layout after{
			slots_.at(id, first, flipped - first, first, whole.readonly),
			slots_.at(spare, flipped, 1, flipped, !whole.readonly),
			slots_.at(spare + 1, flipped + 1, first + pages - flipped - 1, flipped + 1,
				  whole.readonly),
		};
		const std::string among = " of " + std::to_string(count);

		return {{"flip" + among, before, after}, {"flip back" + among, after, before}};
	}

	[[nodiscard]] guests::watched_pages touched() const override
	{
		return slots::touch(0, 64);
	}

private:
	/* Every second one is READONLY, or they would be one. */
	[[nodiscard]] region piece(std::size_t stage, std::uint64_t i) const
	{
		const std::uint64_t count = slots_of_stage_[stage];
		const std::uint64_t pages = slots_.pages() / count;

		return slots_.at(static_cast<std::uint32_t>(i), i * pages, pages, i * pages,
				 i % 2 != 0);
	}

	slots slots_;
	std::vector<std::uint64_t> slots_of_stage_;
	std::minstd_rand random_{1};
};

/* Three slots of many get other host memory. */
class large_layout final : public workload {
public:
	explicit large_layout(const memory &of) : slots_(of)
	{
	}

	[[nodiscard]] std::size_t stages() const override
	{
		return slots_of_stage.size();
	}

	[[nodiscard]] layout base(std::size_t stage) override
	{
		layout all;

		for (std::uint32_t i = 0; i < slots_of_stage[stage]; i++)
			all.push_back(page(i, i));
		return all;
	}

	[[nodiscard]] std::vector<transaction> cycle(std::size_t stage) override
	{
		const std::uint32_t count = slots_of_stage[stage];
		const std::string kind = "three of " + std::to_string(count);
		layout before;
		layout after;

		for (const std::uint32_t slot : {count / 4, count / 2, count / 4 * 3}) {
			before.push_back(page(slot, slot));
			after.push_back(page(slot, count + slot));
		}
		return {{kind, before, after}, {kind, after, before}};
	}

	[[nodiscard]] guests::watched_pages touched() const override
	{
		return slots::touch(slots_of_stage[0] / 2 - 32, 64);
	}

private:
	static constexpr std::array<std::uint32_t, 2> slots_of_stage{1000, 4000};

	[[nodiscard]] region page(std::uint32_t slot, std::uint64_t first) const
	{
		return slots_.at(slot, slot, 1, first);
	}

	slots slots_;
};

/* Many slots at once, as a memory device's that is plugged. */
class plug final : public workload {
public:
	explicit plug(const memory &of) : slots_(of)
	{
	}

	[[nodiscard]] std::size_t stages() const override
	{
		return slots_of_stage.size();
	}

	[[nodiscard]] layout base(std::size_t) override
	{
		return {};
	}

	[[nodiscard]] std::vector<transaction> cycle(std::size_t stage) override
	{
		const std::string count = std::to_string(slots_of_stage[stage]);
		layout all;

		for (std::uint32_t i = 0; i < slots_of_stage[stage]; i++)
			all.push_back(slots_.at(i, i, 1, i));
		return {{"create " + count, {}, all}, {"delete " + count, all, {}}};
	}

private:
	static constexpr std::array<std::uint32_t, 3> slots_of_stage{8, 64, 512};

	slots slots_;
};

/* A slot gets twice its size, and half of it again. */
class grow final : public there_and_back {
public:
	explicit grow(const memory &of) : there_and_back("grow", "shrink")
	{
		before_ = {slots(of).at(0, 0, of.pages / 2, 0)};
		after_ = {slots(of).at(0, 0, of.pages, 0)};
	}

	[[nodiscard]] guests::watched_pages touched() const override
	{
		return slots::touch(0, 64);
	}
};

/* The dirty log of all slots, that of the vCPUs that look on among them. */
class logging final : public there_and_back {
public:
	explicit logging(const memory &of) : there_and_back("log", "unlog")
	{
		constexpr std::uint32_t count = 16;
		const std::uint64_t pages = of.pages / count;

		for (std::uint32_t i = 0; i < count; i++)
			before_.push_back(slots(of).at(i, i * pages, pages, i * pages));
		after_ = before_;
		/* Not a slot of the base: it is there already */
		logged_from_ = of.other;
		for (region &each : after_)
			each.log_dirty_pages = true;
	}

	[[nodiscard]] std::vector<transaction> cycle(std::size_t stage) override
	{
		std::vector<transaction> both = there_and_back::cycle(stage);
		region logged = logged_from_;

		logged.log_dirty_pages = true;
		both[0].from.push_back(logged_from_);
		both[0].to.push_back(logged);
		both[1].from.push_back(logged);
		both[1].to.push_back(logged_from_);
		return both;
	}

	[[nodiscard]] std::chrono::nanoseconds period() const override
	{
		return 20ms;
	}

	[[nodiscard]] bool writes() const override
	{
		return true;
	}

private:
	region logged_from_;
};

/* One slot is created, moved, logged, no longer logged and deleted: what KVM's own call can do. */
class single final : public workload {
public:
	explicit single(const memory &of)
	{
		steps_.push_back(slots(of).at(0, 0, 64, 0));
		steps_.push_back(slots(of).at(0, 128, 64, 0));
		steps_.push_back(steps_.back());
		steps_.back().log_dirty_pages = true;
		steps_.push_back(steps_[1]);
	}

	[[nodiscard]] layout base(std::size_t) override
	{
		return {};
	}

	[[nodiscard]] std::vector<transaction> cycle(std::size_t) override
	{
		return {
			{"create", {}, {steps_[0]}},	   {"move", {steps_[0]}, {steps_[1]}},
			{"log", {steps_[1]}, {steps_[2]}}, {"unlog", {steps_[2]}, {steps_[3]}},
			{"delete", {steps_[3]}, {}},
		};
	}

private:
	layout steps_;
};

template <typename kind>
std::unique_ptr<workload> make(const memory &of)
{
	return std::make_unique<kind>(of);
}

constexpr std::array<workload_kind, 10> all{{
	{"ro-flip", make<ro_flip>},
	{"window", make<window>},
	{"banks", make<banks>},
	{"vsm", make<vsm>},
	{"layout", make<large_layout>},
	{"plug", make<plug>},
	{"split-merge", make<split_merge>},
	{"grow", make<grow>},
	{"log", make<logging>},
	{"single", make<single>},
}};

} // namespace

std::span<const workload_kind> workloads()
{
	return all;
}

} // namespace bench
