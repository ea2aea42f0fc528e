// SPDX-License-Identifier: GPL-2.0
// plan.c on the host: by example, and against a model that knows single pages.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <tuple>
#include <vector>

extern "C" {
#include "plan.h"
}

struct plan_layout {
	std::map<std::pair<u32, u32>, plan_region> slots; // by address space and id
};

extern "C" bool plan_layout_find(const plan_layout *layout, u32 address_space, u32 id,
				 plan_region *region)
{
	auto slot = layout->slots.find({address_space, id});
	if (slot == layout->slots.end())
		return false;
	*region = slot->second;
	return true;
}

extern "C" bool plan_layout_next(const plan_layout *layout, u32 address_space, u64 gfn, u64 end,
				 plan_region *region)
{
	const plan_region *first = nullptr;
	for (const auto &[key, slot] : layout->slots)
		if (key.first == address_space && slot.gfn < end && slot.gfn + slot.npages > gfn &&
		    (!first || slot.gfn < first->gfn))
			first = &slot;
	if (first)
		*region = *first;
	return first;
}

namespace {

constexpr u64 page = 4096;
constexpr u32 max_slot = 100;
constexpr u32 internal_slot = 101; // ids of KVM's own begin above the user's
constexpr u64 huge = 512;

constexpr plan_rules rules = {
	.max_slot = max_slot,
	.address_spaces = 2,
	.entry_flags = MEMSLOT_ENTRY_LOG_DIRTY_PAGES | MEMSLOT_ENTRY_READONLY,
	.max_pages = (1ULL << 31) - 1,
	.max_gfn = (1ULL << 40) - 1,
	.hva_end = (1ULL << 47) - page,
	.dirty_ring = false,
};

memslot_entry entry(u32 slot, u64 gfn, u64 npages, u64 hva_page, u32 flags = 0, u32 as = 0)
{
	return {.slot = slot,
		.address_space = as,
		.flags = flags,
		.reserved = 0,
		.guest_phys_addr = gfn * page,
		.memory_size = npages * page,
		.userspace_addr = hva_page * page,
		.dirty_bitmap = 0,
		.dirty_bitmap_size = 0};
}

memslot_entry removal(u32 slot, u32 as = 0)
{
	return entry(slot, 0, 0, 0, 0, as);
}

void add(plan_layout &layout, u32 id, u64 gfn, u64 npages, u64 hva_page, u32 flags = 0, u32 as = 0)
{
	layout.slots[{as, id}] = {as, id, flags, false, gfn, npages, hva_page * page, nullptr};
}

// Owns a plan, and what plan_build() said.
struct built {
	struct plan plan = {};
	plan_error error = {};
	int err;

	built(const plan_layout &layout, const std::vector<memslot_entry> &entries,
	      const plan_rules &with = rules)
	{
		const plan_request request = {
			.entries = entries.data(),
			.nr_entries = static_cast<u32>(entries.size()),
			.replace_spaces = 0,
		};

		err = plan_build(&plan, &request, &layout, &with, &error);
	}
	built(const built &) = delete;
	~built()
	{
		plan_free(&plan);
	}
	std::vector<std::tuple<u32, u64, u64>> zaps() const
	{
		std::vector<std::tuple<u32, u64, u64>> all;
		for (u32 i = 0; i < plan.zaps; i++)
			all.emplace_back(plan.zap[i].address_space, plan.zap[i].gfn,
					 plan.zap[i].npages);
		return all;
	}
};

using zaps = std::vector<std::tuple<u32, u64, u64>>;

void expect_error(const built &b, int err, u32 index, u32 reason)
{
	EXPECT_EQ(b.err, err);
	EXPECT_EQ(b.error.index, index);
	EXPECT_EQ(b.error.reason, reason);
}

u32 entry_reason(const memslot_entry &e, int err, const plan_rules &with = rules)
{
	u32 reason = MEMSLOT_REASON_NONE;
	EXPECT_EQ(plan_check_entry(&e, &with, &reason), err);
	return reason;
}

TEST(Entry, JudgedByItself)
{
	memslot_entry good = entry(max_slot, 0, 1, 1);
	EXPECT_EQ(entry_reason(good, 0), MEMSLOT_REASON_NONE);

	memslot_entry e = good;
	e.slot = max_slot + 1;
	EXPECT_EQ(entry_reason(e, -EINVAL), MEMSLOT_REASON_SLOT_ID);
	e = good;
	e.address_space = 2;
	EXPECT_EQ(entry_reason(e, -EINVAL), MEMSLOT_REASON_ADDRESS_SPACE);
	e = good;
	e.flags = 4;
	EXPECT_EQ(entry_reason(e, -EOPNOTSUPP), MEMSLOT_REASON_FLAGS);
	e = good;
	e.reserved = 1;
	EXPECT_EQ(entry_reason(e, -EINVAL), MEMSLOT_REASON_ARGUMENT);
	e = good;
	e.guest_phys_addr = 1;
	EXPECT_EQ(entry_reason(e, -EINVAL), MEMSLOT_REASON_GPA_ALIGN);
	e = good;
	e.memory_size = page + 1;
	EXPECT_EQ(entry_reason(e, -EINVAL), MEMSLOT_REASON_SIZE_ALIGN);
	e = good;
	e.userspace_addr += 8;
	EXPECT_EQ(entry_reason(e, -EINVAL), MEMSLOT_REASON_HVA_ALIGN);
}

TEST(Entry, Ranges)
{
	memslot_entry e = entry(0, 0, rules.max_pages, 1);
	EXPECT_EQ(entry_reason(e, 0), MEMSLOT_REASON_NONE);
	e.memory_size += page;
	EXPECT_EQ(entry_reason(e, -EINVAL), MEMSLOT_REASON_TOO_LARGE);

	e = entry(0, rules.max_gfn, 1, 1);
	EXPECT_EQ(entry_reason(e, 0), MEMSLOT_REASON_NONE);
	e.memory_size = 2 * page;
	EXPECT_EQ(entry_reason(e, -EINVAL), MEMSLOT_REASON_GPA_RANGE);
	e.guest_phys_addr = -page; // gpa + size wraps
	EXPECT_EQ(entry_reason(e, -EINVAL), MEMSLOT_REASON_GPA_RANGE);

	e = entry(0, 0, 1, rules.hva_end / page - 1);
	EXPECT_EQ(entry_reason(e, 0), MEMSLOT_REASON_NONE);
	e.memory_size = 2 * page;
	EXPECT_EQ(entry_reason(e, -EINVAL), MEMSLOT_REASON_HVA_RANGE);
	e.userspace_addr = -page;
	EXPECT_EQ(entry_reason(e, -EINVAL), MEMSLOT_REASON_HVA_RANGE);
}

TEST(Entry, RemovalIgnoresTheRegion)
{
	memslot_entry e = removal(3);
	e.guest_phys_addr = 1;
	e.userspace_addr = 1;
	EXPECT_EQ(entry_reason(e, 0), MEMSLOT_REASON_NONE);
}

TEST(Plan, EmptyBatch)
{
	built b({}, {});
	EXPECT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.touched, 0u);
}

TEST(Plan, EqualEntryIsNoWork)
{
	plan_layout layout;
	add(layout, 1, 10, 5, 100, MEMSLOT_ENTRY_LOG_DIRTY_PAGES);
	built b(layout, {entry(1, 10, 5, 100, MEMSLOT_ENTRY_LOG_DIRTY_PAGES)});
	EXPECT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.count[PLAN_NOTHING], 1u);
	EXPECT_EQ(b.plan.touched, 0u);
	EXPECT_EQ(b.plan.segments, 0u);
}

TEST(Plan, Kinds)
{
	plan_layout layout;
	add(layout, 1, 0, 4, 100);
	add(layout, 2, 10, 4, 200);
	add(layout, 3, 20, 4, 300);
	add(layout, 4, 30, 4, 400);
	add(layout, 5, 40, 4, 500);
	built b(layout, {removal(1), entry(2, 50, 4, 200), entry(3, 20, 5, 300),
			 entry(4, 30, 4, 400, MEMSLOT_ENTRY_LOG_DIRTY_PAGES),
			 entry(5, 40, 4, 500, MEMSLOT_ENTRY_READONLY), entry(6, 60, 1, 600),
			 // moved and reflagged at once
			 entry(7, 70, 1, 700, 0, 1)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.change[0].kind, PLAN_DELETE);
	EXPECT_EQ(b.plan.change[1].kind, PLAN_MOVE);
	EXPECT_EQ(b.plan.change[2].kind, PLAN_REPLACE);
	EXPECT_EQ(b.plan.change[3].kind, PLAN_REFLAG);
	EXPECT_EQ(b.plan.change[4].kind, PLAN_REPLACE);
	EXPECT_EQ(b.plan.change[5].kind, PLAN_CREATE);
	EXPECT_EQ(b.plan.touched, 3u);
	EXPECT_TRUE(b.plan.uncovers);
	EXPECT_TRUE(b.plan.drops_slots);
}

TEST(Plan, CreateAndReflagDropNoSlot)
{
	plan_layout layout;
	add(layout, 1, 0, 4, 100);
	built b(layout, {entry(1, 0, 4, 100, MEMSLOT_ENTRY_LOG_DIRTY_PAGES), entry(2, 4, 1, 1)});
	ASSERT_EQ(b.err, 0);
	EXPECT_FALSE(b.plan.drops_slots);
	EXPECT_FALSE(b.plan.uncovers);
	EXPECT_EQ(b.zaps(), zaps{});
	// a reflag needs no fence: only the created slot is in it
	EXPECT_EQ(b.plan.fence_gfn.start, 4u);
	EXPECT_EQ(b.plan.fence_gfn.end, 5u);
}

TEST(Plan, SplitAndMergeKeepTranslations)
{
	plan_layout layout;
	add(layout, 1, 0, 30, 100); // too small for a huge page
	built split(layout, {entry(1, 0, 10, 100), entry(2, 10, 10, 110), entry(3, 20, 10, 120)});
	ASSERT_EQ(split.err, 0);
	EXPECT_EQ(split.plan.pages_kept, 30u);
	EXPECT_EQ(split.zaps(), zaps{});
	EXPECT_FALSE(split.plan.uncovers);

	plan_layout parts;
	add(parts, 1, 0, 10, 100);
	add(parts, 2, 10, 10, 110);
	add(parts, 3, 20, 10, 120);
	built merge(parts, {entry(1, 0, 30, 100), removal(2), removal(3)});
	ASSERT_EQ(merge.err, 0);
	EXPECT_EQ(merge.plan.pages_kept, 30u);
	EXPECT_EQ(merge.zaps(), zaps{});
	EXPECT_FALSE(merge.plan.uncovers);
}

TEST(Plan, CutThroughAHugePageIsZappedThere)
{
	plan_layout layout;
	add(layout, 1, 0, 4 * huge, 8 * huge);
	u64 cut = huge + 7;
	built b(layout,
		{entry(1, 0, cut, 8 * huge), entry(2, cut, 4 * huge - cut, 8 * huge + cut)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.pages_kept, 4 * huge);
	EXPECT_EQ(b.zaps(), (zaps{{0, cut, 1}}));
}

TEST(Plan, CutBetweenHugePagesIsNot)
{
	plan_layout layout;
	add(layout, 1, 0, 4 * huge, 8 * huge);
	built b(layout, {entry(1, 0, huge, 8 * huge), entry(2, huge, 3 * huge, 9 * huge)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.zaps(), zaps{});
}

TEST(Plan, CutInsideAGigabytePage)
{
	u64 gib = huge * huge;
	plan_layout layout;
	add(layout, 1, 0, 2 * gib, 4 * gib);
	built b(layout,
		{entry(1, 0, huge, 4 * gib), entry(2, huge, 2 * gib - huge, 4 * gib + huge)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.zaps(), (zaps{{0, huge, 1}}));
}

TEST(Plan, NoHugePageWhereGfnAndHvaDisagree)
{
	plan_layout layout;
	add(layout, 1, 0, 4 * huge, 8 * huge + 1);
	built b(layout, {entry(1, 0, 7, 8 * huge + 1), entry(2, 7, 4 * huge - 7, 8 * huge + 8)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.zaps(), zaps{});
}

TEST(Plan, OtherFlagsZapKeptPages)
{
	plan_layout layout;
	add(layout, 1, 0, 10, 100);
	built b(layout, {entry(1, 0, 5, 100), entry(2, 5, 5, 105, MEMSLOT_ENTRY_LOG_DIRTY_PAGES)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.pages_kept, 10u);
	EXPECT_EQ(b.zaps(), (zaps{{0, 5, 5}}));
}

TEST(Plan, DirtyRingZapsWhatChangesItsName)
{
	plan_rules ring = rules;
	ring.dirty_ring = true;
	plan_layout layout;
	add(layout, 1, 0, 10, 100, MEMSLOT_ENTRY_LOG_DIRTY_PAGES);
	built b(layout,
		{entry(1, 0, 5, 100, MEMSLOT_ENTRY_LOG_DIRTY_PAGES),
		 entry(2, 5, 5, 105, MEMSLOT_ENTRY_LOG_DIRTY_PAGES)},
		ring);
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.zaps(), (zaps{{0, 5, 5}}));
}

TEST(Plan, MoveOverItsOwnRange)
{
	plan_layout layout;
	add(layout, 1, 10, 5, 100);
	built b(layout, {entry(1, 12, 5, 100)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.change[0].kind, PLAN_MOVE);
	EXPECT_EQ(b.plan.pages_removed, 2u);
	EXPECT_EQ(b.plan.pages_remapped, 3u);
	EXPECT_EQ(b.plan.pages_added, 2u);
	EXPECT_EQ(b.zaps(), (zaps{{0, 10, 5}}));
}

TEST(Plan, NeighboursZappedAsOneRange)
{
	plan_layout layout;
	std::vector<memslot_entry> entries;
	for (u32 i = 0; i < 64; i++) {
		add(layout, i, i, 1, 1000 + i);
		entries.push_back(removal(i));
	}
	built b(layout, entries);
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.zaps(), (zaps{{0, 0, 64}}));
	EXPECT_TRUE(b.plan.uncovers);
}

TEST(Error, Duplicate)
{
	built b({}, {entry(1, 0, 1, 1), entry(2, 1, 1, 1), entry(1, 2, 1, 1), entry(2, 3, 1, 1)});
	expect_error(b, -EINVAL, 2, MEMSLOT_REASON_DUPLICATE);
}

TEST(Error, SameIdInTwoAddressSpacesIsFine)
{
	built b({}, {entry(1, 0, 1, 1), entry(1, 0, 1, 1, 0, 1)});
	EXPECT_EQ(b.err, 0);
}

TEST(Error, DeleteOfNothing)
{
	built b({}, {entry(1, 0, 1, 1), removal(2)});
	expect_error(b, -ENOENT, 1, MEMSLOT_REASON_NO_SLOT);
}

TEST(Error, GuestMemfd)
{
	plan_layout layout;
	add(layout, 1, 0, 1, 1);
	layout.slots[{0, 1}].guest_memfd = true;
	expect_error(built(layout, {removal(1)}), -EOPNOTSUPP, 0, MEMSLOT_REASON_GUEST_MEMFD);
}

TEST(Error, OverlapNamesTheFirstEntryThatMakesOne)
{
	built b({}, {entry(1, 100, 10, 1), entry(2, 50, 10, 1), entry(3, 0, 200, 1),
		     entry(4, 55, 1, 1)});
	expect_error(b, -EEXIST, 2, MEMSLOT_REASON_OVERLAP_ENTRY);
}

TEST(Error, OverlapWithStayingSlot)
{
	plan_layout layout;
	add(layout, 9, 10, 10, 100);
	expect_error(built(layout, {entry(1, 0, 10, 1), entry(2, 19, 2, 1)}), -EEXIST, 1,
		     MEMSLOT_REASON_OVERLAP_SLOT);
	EXPECT_EQ(built(layout, {entry(1, 0, 10, 1), entry(2, 20, 2, 1)}).err, 0);
}

TEST(Error, OverlapWithKvmsOwnSlot)
{
	plan_layout layout;
	add(layout, internal_slot, 0xfee00, 1, 100);
	expect_error(built(layout, {entry(1, 0, 1 << 20, 1)}), -EEXIST, 0,
		     MEMSLOT_REASON_OVERLAP_SLOT);
}

TEST(Error, NoOverlapWithWhatLeaves)
{
	plan_layout layout;
	add(layout, 1, 0, 10, 100);
	add(layout, 2, 20, 10, 200);
	// 3 takes the place of 1, 1 and 2 swap away
	EXPECT_EQ(built(layout, {entry(3, 0, 10, 300), entry(1, 20, 10, 100), removal(2)}).err, 0);
}

// ---- Against a model that keeps a map of single pages ----

struct page_state {
	u32 id;
	u64 hva;
	u32 flags;
	bool operator==(const page_state &) const = default;
};

using page_map = std::map<std::pair<u32, u64>, page_state>;

page_map pages_of(const std::map<std::pair<u32, u32>, plan_region> &slots)
{
	page_map pages;
	for (const auto &[key, slot] : slots)
		for (u64 i = 0; i < slot.npages; i++)
			pages[{key.first, slot.gfn + i}] = {slot.id, slot.hva + i * page,
							    slot.flags};
	return pages;
}

struct verdict {
	int err = 0;
	u32 index = MEMSLOT_NO_ENTRY;
	u32 reason = MEMSLOT_REASON_NONE;
	std::map<std::pair<u32, u32>, plan_region> after;
};

verdict judge(const plan_layout &layout, const std::vector<memslot_entry> &entries)
{
	std::set<std::pair<u32, u32>> named;
	for (u32 i = 0; i < entries.size(); i++)
		if (!named.insert({entries[i].address_space, entries[i].slot}).second)
			return {-EINVAL, i, MEMSLOT_REASON_DUPLICATE, {}};
	for (u32 i = 0; i < entries.size(); i++)
		if (!entries[i].memory_size &&
		    !layout.slots.contains({entries[i].address_space, entries[i].slot}))
			return {-ENOENT, i, MEMSLOT_REASON_NO_SLOT, {}};

	verdict v{.after = layout.slots};
	for (const auto &key : named)
		v.after.erase(key);
	page_map staying = pages_of(v.after);
	page_map taken;
	for (u32 i = 0; i < entries.size(); i++) {
		const memslot_entry &e = entries[i];
		if (!e.memory_size)
			continue;
		plan_region region = {e.address_space,
				      e.slot,
				      e.flags,
				      false,
				      e.guest_phys_addr / page,
				      e.memory_size / page,
				      e.userspace_addr, nullptr};
		bool hits_entry = false, hits_slot = false;
		for (u64 gfn = region.gfn; gfn < region.gfn + region.npages; gfn++) {
			hits_entry |= !taken.insert({{e.address_space, gfn}, {}}).second;
			hits_slot |= staying.contains({e.address_space, gfn});
		}
		if (hits_entry)
			return {-EEXIST, i, MEMSLOT_REASON_OVERLAP_ENTRY, {}};
		if (hits_slot)
			return {-EEXIST, i, MEMSLOT_REASON_OVERLAP_SLOT, {}};
		v.after[{e.address_space, e.slot}] = region;
	}
	return v;
}

void compare(const plan_layout &layout, const std::vector<memslot_entry> &entries)
{
	verdict v = judge(layout, entries);
	built b(layout, entries);
	ASSERT_EQ(b.err, v.err);
	if (v.err) {
		ASSERT_EQ(b.error.index, v.index);
		ASSERT_EQ(b.error.reason, v.reason);
		return;
	}

	page_map before = pages_of(layout.slots), after = pages_of(v.after);
	std::set<std::pair<u32, u64>> touched;
	for (const memslot_entry &e : entries) {
		auto old = layout.slots.find({e.address_space, e.slot});
		auto now = v.after.find({e.address_space, e.slot});
		bool existed = old != layout.slots.end(), exists = now != v.after.end();
		if (existed && exists && old->second.gfn == now->second.gfn &&
		    old->second.npages == now->second.npages &&
		    old->second.hva == now->second.hva && old->second.flags == now->second.flags)
			continue;
		if (existed)
			for (u64 i = 0; i < old->second.npages; i++)
				touched.insert({e.address_space, old->second.gfn + i});
		if (exists)
			for (u64 i = 0; i < now->second.npages; i++)
				touched.insert({e.address_space, now->second.gfn + i});
	}

	u64 kept = 0, remapped = 0, removed = 0, added = 0;
	std::set<std::pair<u32, u64>> must_zap;
	for (const auto &key : touched) {
		auto was = before.find(key), is = after.find(key);
		if (was == before.end()) {
			added++;
		} else if (is == after.end()) {
			removed++;
			must_zap.insert(key);
		} else if (was->second.hva != is->second.hva) {
			remapped++;
			must_zap.insert(key);
		} else {
			kept++;
			// KVM switches dirty logging of a slot by itself
			bool reflag =
				was->second.id == is->second.id &&
				layout.slots.at({key.first, is->second.id}).gfn ==
					v.after.at({key.first, is->second.id}).gfn &&
				layout.slots.at({key.first, is->second.id}).npages ==
					v.after.at({key.first, is->second.id}).npages &&
				!((was->second.flags ^ is->second.flags) & MEMSLOT_ENTRY_READONLY);
			if (was->second.flags != is->second.flags && !reflag)
				must_zap.insert(key);
		}
	}
	ASSERT_EQ(b.plan.pages_kept, kept);
	ASSERT_EQ(b.plan.pages_remapped, remapped);
	ASSERT_EQ(b.plan.pages_removed, removed);
	ASSERT_EQ(b.plan.pages_added, added);
	ASSERT_EQ(b.plan.uncovers, removed > 0);

	// Slots are too small for huge pages here: zapped is what must be, no more.
	std::set<std::pair<u32, u64>> zapped;
	for (const auto &[as, gfn, npages] : b.zaps())
		for (u64 i = 0; i < npages; i++)
			ASSERT_TRUE(zapped.insert({as, gfn + i}).second);
	ASSERT_EQ(zapped, must_zap);
}

TEST(Model, RandomBatches)
{
	std::mt19937_64 random(20261123);
	auto below = [&](u64 n) { return random() % n; };

	for (int round = 0; round < 30000; round++) {
		SCOPED_TRACE(round);
		plan_layout layout;
		page_map pages;
		for (u32 i = 0; i < below(8); i++) {
			u32 as = below(2), id = below(10);
			u64 gfn = below(40), npages = 1 + below(8);
			bool free = !layout.slots.contains({as, id});
			for (u64 k = 0; k < npages; k++)
				free &= !pages.contains({as, gfn + k});
			if (!free)
				continue;
			// offsets of hva to gfn repeat, so that pages are kept often
			add(layout, id, gfn, npages, 1000 * (1 + below(2)) + gfn, below(4), as);
			pages = pages_of(layout.slots);
		}
		std::vector<memslot_entry> entries;
		for (u32 i = 0, n = below(6); i < n; i++) {
			u32 as = below(2), id = below(10);
			u64 gfn = below(40), npages = below(9);
			if (npages)
				entries.push_back(entry(id, gfn, npages,
							1000 * (1 + below(2)) + gfn, below(4), as));
			else
				entries.push_back(removal(id, as));
		}
		ASSERT_NO_FATAL_FAILURE(compare(layout, entries));
	}
}

} // namespace
