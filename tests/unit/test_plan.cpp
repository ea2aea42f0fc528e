// SPDX-License-Identifier: GPL-2.0
// plan.c on the host, by example.
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdlib>
#include <tuple>
#include <vector>

#include "model.hpp"

// Linked in place of malloc() where plan.c calls it
static bool out_of_memory;
extern "C" void *__real_malloc(size_t bytes);
extern "C" void *__wrap_malloc(size_t bytes)
{
	return out_of_memory ? nullptr : __real_malloc(bytes);
}

namespace {

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

struct built : made_plan {
	built(const plan_layout &layout, const std::vector<memslot_entry> &entries,
	      const plan_rules &with = rules, u32 replace_spaces = 0)
	    : made_plan({with, layout, entries, replace_spaces})
	{
	}
	std::vector<std::tuple<u32, u64, u64>> zaps() const
	{
		std::vector<std::tuple<u32, u64, u64>> all;
		for (u32 i = 0; i < plan.nr_zaps; i++)
			all.emplace_back(plan.zaps[i].address_space, plan.zaps[i].gfn,
					 plan.zaps[i].npages);
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
	EXPECT_EQ(b.plan.totals.count[PLAN_NOTHING], 1u);
	EXPECT_EQ(b.plan.touched, 0u);
	EXPECT_EQ(b.plan.nr_segments, 0u);
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
			 entry(7, 70, 1, 700, 0, 1)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.changes[0].kind, PLAN_DELETE);
	EXPECT_EQ(b.plan.changes[1].kind, PLAN_MOVE);
	EXPECT_EQ(b.plan.changes[2].kind, PLAN_REPLACE);
	EXPECT_EQ(b.plan.changes[3].kind, PLAN_REFLAG);
	EXPECT_EQ(b.plan.changes[4].kind, PLAN_REPLACE);
	EXPECT_EQ(b.plan.changes[5].kind, PLAN_CREATE);
	EXPECT_EQ(b.plan.touched, 3u);
	EXPECT_EQ(b.plan.nr_uncovered, 2u); // slot 1, and where slot 2 was
	EXPECT_TRUE(b.plan.drops_slots);
}

// KVM's hooks have no change that is both.
TEST(Plan, MoveWithOtherFlagsIsAReplace)
{
	plan_layout layout;
	add(layout, 1, 0, 4, 100);
	for (u32 flags : {MEMSLOT_ENTRY_LOG_DIRTY_PAGES, MEMSLOT_ENTRY_READONLY}) {
		built b(layout, {entry(1, 10, 4, 100, flags)});
		ASSERT_EQ(b.err, 0);
		EXPECT_EQ(b.plan.changes[0].kind, PLAN_REPLACE);
	}
}

TEST(Plan, MoveAloneDropsASlot)
{
	plan_layout layout;
	add(layout, 1, 0, 4, 100);
	built b(layout, {entry(1, 10, 4, 100)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.totals.count[PLAN_MOVE], 1u);
	EXPECT_TRUE(b.plan.drops_slots);
}

TEST(Plan, MoveWithADirtyLog)
{
	plan_layout layout;
	add(layout, 1, 0, 4, 100, MEMSLOT_ENTRY_LOG_DIRTY_PAGES);
	add(layout, 2, 20, 4, 200);
	EXPECT_TRUE(built(layout, {entry(1, 10, 4, 100, MEMSLOT_ENTRY_LOG_DIRTY_PAGES)})
			    .plan.moves_log);
	EXPECT_FALSE(built(layout, {entry(1, 0, 3, 100, MEMSLOT_ENTRY_LOG_DIRTY_PAGES),
				    entry(2, 10, 4, 200)})
			     .plan.moves_log);
}

TEST(Plan, CreateAndReflagDropNoSlot)
{
	plan_layout layout;
	add(layout, 1, 0, 4, 100);
	built b(layout, {entry(1, 0, 4, 100, MEMSLOT_ENTRY_LOG_DIRTY_PAGES), entry(2, 4, 1, 1)});
	ASSERT_EQ(b.err, 0);
	EXPECT_FALSE(b.plan.drops_slots);
	EXPECT_EQ(b.plan.nr_uncovered, 0u);
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
	EXPECT_EQ(split.plan.totals.pages_kept, 30u);
	EXPECT_EQ(split.zaps(), zaps{});
	EXPECT_EQ(split.plan.nr_uncovered, 0u);

	plan_layout parts;
	add(parts, 1, 0, 10, 100);
	add(parts, 2, 10, 10, 110);
	add(parts, 3, 20, 10, 120);
	built merge(parts, {entry(1, 0, 30, 100), removal(2), removal(3)});
	ASSERT_EQ(merge.err, 0);
	EXPECT_EQ(merge.plan.totals.pages_kept, 30u);
	EXPECT_EQ(merge.zaps(), zaps{});
	EXPECT_EQ(merge.plan.nr_uncovered, 0u);
}

TEST(Plan, CutThroughAHugePageIsZappedThere)
{
	plan_layout layout;
	add(layout, 1, 0, 4 * huge, 8 * huge);
	u64 cut = huge + 7;
	built b(layout,
		{entry(1, 0, cut, 8 * huge), entry(2, cut, 4 * huge - cut, 8 * huge + cut)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.totals.pages_kept, 4 * huge);
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
	EXPECT_EQ(b.plan.totals.pages_kept, 10u);
	EXPECT_EQ(b.zaps(), (zaps{{0, 5, 5}}));
}

TEST(Plan, DirtyRingZapsWhatChangesItsName)
{
	plan_layout layout;
	layout.dirty_ring = true;
	add(layout, 1, 0, 10, 100, MEMSLOT_ENTRY_LOG_DIRTY_PAGES);
	built b(layout, {entry(1, 0, 5, 100, MEMSLOT_ENTRY_LOG_DIRTY_PAGES),
			 entry(2, 5, 5, 105, MEMSLOT_ENTRY_LOG_DIRTY_PAGES)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.zaps(), (zaps{{0, 5, 5}}));
}

TEST(Plan, DirtyRingZapsWhatChangesItsOffset)
{
	plan_layout layout;
	add(layout, 1, 10, 10, 110, MEMSLOT_ENTRY_LOG_DIRTY_PAGES);
	std::vector<memslot_entry> grown = {entry(1, 5, 15, 105, MEMSLOT_ENTRY_LOG_DIRTY_PAGES)};
	EXPECT_EQ(built(layout, grown).zaps(), zaps{});
	layout.dirty_ring = true;
	EXPECT_EQ(built(layout, grown).zaps(), (zaps{{0, 10, 10}}));
	// at its end all offsets stay
	EXPECT_EQ(built(layout, {entry(1, 10, 15, 110, MEMSLOT_ENTRY_LOG_DIRTY_PAGES)}).zaps(),
		  zaps{});
}

TEST(Plan, MoveOverItsOwnRange)
{
	plan_layout layout;
	add(layout, 1, 10, 5, 100);
	built b(layout, {entry(1, 12, 5, 100)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.changes[0].kind, PLAN_MOVE);
	EXPECT_EQ(b.plan.totals.pages_removed, 2u);
	EXPECT_EQ(b.plan.totals.pages_remapped, 3u);
	EXPECT_EQ(b.plan.totals.pages_added, 2u);
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
	EXPECT_EQ(b.plan.nr_uncovered, 64u);
}

TEST(Plan, EachPartThatGoesIsUncoveredByItself)
{
	plan_layout layout;
	add(layout, 1, 0, 40, 100);
	add(layout, 2, 40, 10, 200);
	add(layout, 3, 0, 10, 300, 0, 1);
	// pages 5 to 9, 20 to 39, the whole of 2, and all but page 100 of 3
	built b(layout, {entry(1, 0, 5, 100), entry(4, 10, 10, 400), removal(2),
			 entry(3, 0, 1, 300, 0, 1)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.totals.pages_removed, 5u + 20u + 10u + 9u);
	EXPECT_EQ(b.plan.nr_uncovered, 4u);
}

TEST(Plan, NeighboursInTwoAddressSpacesAreNone)
{
	plan_layout layout;
	add(layout, 1, 0, 10, 100, 0, 0);
	add(layout, 1, 10, 10, 200, 0, 1);
	built b(layout, {removal(1, 1), removal(1, 0)});
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.zaps(), (zaps{{0, 0, 10}, {1, 10, 10}}));
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

TEST(Error, ARefusedBatchHoldsNothing)
{
	built b({}, {entry(1, 0, 1, 1), entry(2, 0, 1, 1)});
	expect_error(b, -EEXIST, 1, MEMSLOT_REASON_OVERLAP_ENTRY);
	EXPECT_EQ(b.plan.memory, nullptr);
}

TEST(Error, OutOfMemory)
{
	out_of_memory = true;
	built b({}, {entry(1, 0, 1, 1), entry(2, 1, 1, 1)});
	out_of_memory = false;
	expect_error(b, -ENOMEM, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_MEMORY);
	EXPECT_EQ(b.plan.nr_changes, 0u);
}

TEST(Plan, OfOneChangeAllocatesNothing)
{
	out_of_memory = true;
	built b({}, {entry(1, 0, 1, 1)});
	out_of_memory = false;
	EXPECT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.totals.count[PLAN_CREATE], 1u);
}

// ---- Whole address spaces ----

constexpr u32 log_dirty = MEMSLOT_ENTRY_LOG_DIRTY_PAGES;

// Slots 1 to 3 in both address spaces, and one of KVM's own in the first
plan_layout two_spaces()
{
	plan_layout layout;
	for (u32 as = 0; as < 2; as++)
		for (u32 id = 1; id <= 3; id++)
			add(layout, id, u64{10} * id, 10, u64{100} * id, 0, as);
	add(layout, internal_slot, 100, 1, 900);
	return layout;
}

// (address space, slot id) of what goes without being named
std::vector<std::pair<u32, u32>> dropped(const built &b, u32 first)
{
	std::vector<std::pair<u32, u32>> all;
	for (u32 i = first; i < b.plan.nr_changes; i++) {
		EXPECT_EQ(b.plan.changes[i].kind, PLAN_DELETE);
		EXPECT_EQ(b.plan.changes[i].after.npages, 0u);
		all.emplace_back(b.plan.changes[i].before.address_space,
				 b.plan.changes[i].before.id);
	}
	return all;
}

using ids = std::vector<std::pair<u32, u32>>;

TEST(ReplaceSpaces, UnnamedSlotsGo)
{
	built b(two_spaces(), {entry(2, 20, 10, 200), entry(7, 50, 5, 700)}, rules, 1);
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.totals.count[PLAN_NOTHING], 1u);
	EXPECT_EQ(b.plan.changes[0].kind, PLAN_CREATE);
	EXPECT_EQ(dropped(b, 1), (ids{{0, 1}, {0, 3}}));
	EXPECT_EQ(b.plan.totals.count[PLAN_DELETE], 2u);
	EXPECT_EQ(b.plan.totals.pages_removed, 20u);
	EXPECT_EQ(b.plan.touched, 1u);
	EXPECT_EQ(b.plan.nr_uncovered, 2u);
	EXPECT_EQ(b.zaps(), (zaps{{0, 10, 10}, {0, 30, 10}}));
}

TEST(ReplaceSpaces, OnlyTheOneThatIsAskedFor)
{
	built b(two_spaces(), {}, rules, 2);
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(dropped(b, 0), (ids{{1, 1}, {1, 2}, {1, 3}}));
	EXPECT_EQ(b.plan.touched, 2u);
	EXPECT_EQ(b.zaps(), (zaps{{1, 10, 30}}));
}

TEST(ReplaceSpaces, BothAndKvmsOwnSlotStays)
{
	built b(two_spaces(), {entry(2, 20, 10, 200, 0, 1)}, rules, 3);
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(dropped(b, 0), (ids{{0, 1}, {0, 2}, {0, 3}, {1, 1}, {1, 3}}));
	EXPECT_EQ(b.plan.touched, 3u);
}

TEST(ReplaceSpaces, AllSlotsNamedIsTheSameAsWithout)
{
	std::vector<memslot_entry> all;
	for (u32 id = 1; id <= 3; id++)
		all.push_back(entry(id, u64{10} * id, 10, u64{100} * id));
	built b(two_spaces(), all, rules, 1);
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.nr_changes, 0u);
	EXPECT_EQ(b.plan.totals.count[PLAN_NOTHING], 3u);
	EXPECT_EQ(b.plan.touched, 0u);
	// KVM's slots are gone through once, to count them: three, its own, and the end
	EXPECT_EQ(b.looks, 5u);
}

TEST(ReplaceSpaces, EmptySpaceIsNoWork)
{
	plan_layout layout;
	add(layout, internal_slot, 100, 1, 900);
	built b(layout, {}, rules, 3);
	EXPECT_EQ(b.err, 0);
	EXPECT_EQ(b.plan.touched, 0u);
}

TEST(ReplaceSpaces, OneBatchBySlotsThatAllHaveNewIds)
{
	built b(two_spaces(), {entry(11, 10, 15, 100), entry(12, 30, 10, 300)}, rules, 1);
	ASSERT_EQ(b.err, 0);
	EXPECT_EQ(dropped(b, 2), (ids{{0, 1}, {0, 2}, {0, 3}}));
	EXPECT_EQ(b.plan.totals.pages_kept, 20u);
	EXPECT_EQ(b.plan.totals.pages_remapped, 5u);
	EXPECT_EQ(b.plan.totals.pages_removed, 5u);
	EXPECT_EQ(b.zaps(), (zaps{{0, 20, 10}}));
}

TEST(ReplaceSpaces, DeletingAMissingSlotIsStillAnError)
{
	expect_error(built(two_spaces(), {removal(9)}, rules, 1), -ENOENT, 0,
		     MEMSLOT_REASON_NO_SLOT);
}

TEST(ReplaceSpaces, UnnamedGuestMemfd)
{
	plan_layout layout = two_spaces();
	layout.slots[{0, 3}].guest_memfd = true;
	std::vector<memslot_entry> entries = {entry(1, 10, 10, 100)};
	expect_error(built(layout, entries, rules, 1), -EOPNOTSUPP, MEMSLOT_NO_ENTRY,
		     MEMSLOT_REASON_GUEST_MEMFD);
	// named it is the entry's fault, and an address space that stays may have one
	expect_error(built(layout, {removal(2), removal(3)}, rules, 1), -EOPNOTSUPP, 1,
		     MEMSLOT_REASON_GUEST_MEMFD);
	EXPECT_EQ(built(layout, entries, rules, 2).err, 0);
}

TEST(ReplaceSpaces, UnnamedGuestMemfdComesBeforeOverlap)
{
	plan_layout layout = two_spaces();
	layout.slots[{0, 3}].guest_memfd = true;
	expect_error(built(layout, {entry(1, 0, 5, 100), entry(2, 4, 5, 100)}, rules, 1),
		     -EOPNOTSUPP, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_GUEST_MEMFD);
}

TEST(ReplaceSpaces, OverlapWithASlotThatGoesIsFine)
{
	std::vector<memslot_entry> over_two = {entry(7, 15, 10, 700)};
	expect_error(built(two_spaces(), over_two), -EEXIST, 0, MEMSLOT_REASON_OVERLAP_SLOT);
	expect_error(built(two_spaces(), over_two, rules, 2), -EEXIST, 0,
		     MEMSLOT_REASON_OVERLAP_SLOT);
	EXPECT_EQ(built(two_spaces(), over_two, rules, 1).err, 0);
}

TEST(ReplaceSpaces, OverlapWithKvmsOwnSlotIsNot)
{
	expect_error(built(two_spaces(), {entry(7, 15, 10, 700), entry(8, 95, 10, 800)}, rules, 3),
		     -EEXIST, 1, MEMSLOT_REASON_OVERLAP_SLOT);
}

// ---- The last dirty bitmap ----

memslot_entry with_bitmap(memslot_entry e, u64 bytes, u64 address = 0x1000)
{
	e.dirty_bitmap = address;
	e.dirty_bitmap_size = bytes;
	return e;
}

TEST(Bitmap, AlignmentAndSize)
{
	memslot_entry e = removal(1);
	EXPECT_EQ(entry_reason(with_bitmap(e, 8), 0), MEMSLOT_REASON_NONE);
	EXPECT_EQ(entry_reason(with_bitmap(e, 64, 8), 0), MEMSLOT_REASON_NONE);
	for (u64 off : {1, 4, 7}) {
		EXPECT_EQ(entry_reason(with_bitmap(e, 8, 0x1000 + off), -EINVAL),
			  MEMSLOT_REASON_BITMAP_ALIGN);
		EXPECT_EQ(entry_reason(with_bitmap(e, 8 + off), -EINVAL),
			  MEMSLOT_REASON_BITMAP_SIZE);
	}
	e = entry(1, 0, 1, 1);
	EXPECT_EQ(entry_reason(with_bitmap(e, 8), 0), MEMSLOT_REASON_NONE);
	EXPECT_EQ(entry_reason(with_bitmap(e, 12), -EINVAL), MEMSLOT_REASON_BITMAP_SIZE);
}

TEST(Bitmap, PointerAndSizeComeTogether)
{
	for (const memslot_entry &e : {removal(1), entry(1, 0, 1, 1)}) {
		EXPECT_EQ(entry_reason(with_bitmap(e, 0), -EINVAL), MEMSLOT_REASON_BITMAP_SIZE);
		EXPECT_EQ(entry_reason(with_bitmap(e, 8, 0), -EINVAL), MEMSLOT_REASON_BITMAP_SIZE);
	}
}

// A slot of 65 pages with a dirty log: its bitmap has two words.
plan_layout logged()
{
	plan_layout layout;
	add(layout, 1, 10, 65, 100, log_dirty);
	add(layout, 2, 100, 65, 300);
	return layout;
}

TEST(Bitmap, OneBitPerPageOfTodaysSlot)
{
	expect_error(built(logged(), {entry(5, 0, 1, 1), with_bitmap(removal(1), 8)}), -EINVAL, 1,
		     MEMSLOT_REASON_BITMAP_SIZE);
	built enough(logged(), {with_bitmap(removal(1), 16)});
	EXPECT_EQ(enough.err, 0);
	EXPECT_TRUE(enough.plan.hands_back);
	// the new slot has one page, the old one counts
	expect_error(built(logged(), {with_bitmap(entry(1, 10, 1, 100, log_dirty), 8)}), -EINVAL, 0,
		     MEMSLOT_REASON_BITMAP_SIZE);
	// 64 pages fill one word
	plan_layout layout;
	add(layout, 1, 0, 64, 100, log_dirty);
	EXPECT_EQ(built(layout, {with_bitmap(removal(1), 8)}).err, 0);
}

TEST(Bitmap, NobodyAsks)
{
	built b(logged(), {removal(1)});
	ASSERT_EQ(b.err, 0);
	EXPECT_FALSE(b.plan.hands_back);
}

TEST(Bitmap, NoDirtyLog)
{
	expect_error(built(logged(), {with_bitmap(removal(2), 16)}), -EINVAL, 0,
		     MEMSLOT_REASON_NO_DIRTY_LOG);
	// that the new slot has one is not enough
	expect_error(built(logged(), {with_bitmap(entry(2, 100, 65, 300, log_dirty), 16)}), -EINVAL,
		     0, MEMSLOT_REASON_NO_DIRTY_LOG);
	expect_error(built(logged(), {with_bitmap(entry(3, 200, 65, 500, log_dirty), 16)}), -EINVAL,
		     0, MEMSLOT_REASON_NO_DIRTY_LOG);
}

TEST(Bitmap, MissingSlotIsSaidFirst)
{
	expect_error(built(logged(), {with_bitmap(removal(3), 16)}), -ENOENT, 0,
		     MEMSLOT_REASON_NO_SLOT);
}

TEST(Bitmap, AnEntryThatChangesNothingKeepsItsLog)
{
	expect_error(built(logged(), {with_bitmap(entry(1, 10, 65, 100, log_dirty), 16)}), -EINVAL,
		     0, MEMSLOT_REASON_NO_DIRTY_LOG);
}

TEST(Bitmap, OfSlotsThatAreMovedReplacedOrSwitchedOff)
{
	built moved(logged(), {with_bitmap(entry(1, 11, 65, 100, log_dirty), 16)});
	ASSERT_EQ(moved.err, 0);
	EXPECT_EQ(moved.plan.changes[0].kind, PLAN_MOVE);
	EXPECT_TRUE(moved.plan.hands_back);

	built replaced(logged(), {with_bitmap(entry(1, 10, 65, 900, log_dirty), 16)});
	ASSERT_EQ(replaced.err, 0);
	EXPECT_EQ(replaced.plan.changes[0].kind, PLAN_REPLACE);
	EXPECT_TRUE(replaced.plan.hands_back);

	built off(logged(), {with_bitmap(entry(1, 10, 65, 100), 16)});
	ASSERT_EQ(off.err, 0);
	EXPECT_EQ(off.plan.changes[0].kind, PLAN_REFLAG);
	EXPECT_TRUE(off.plan.hands_back);
}

TEST(Bitmap, RingsHaveNone)
{
	plan_layout layout = logged();
	layout.dirty_ring = true;
	expect_error(built(layout, {removal(2), with_bitmap(removal(1), 16)}), -EOPNOTSUPP, 1,
		     MEMSLOT_REASON_DIRTY_RING);
	// whatever else is wrong with it
	expect_error(built(layout, {with_bitmap(removal(2), 8)}), -EOPNOTSUPP, 0,
		     MEMSLOT_REASON_DIRTY_RING);
}

TEST(Bitmap, NotOfASlotThatGoesUnnamed)
{
	built b(logged(), {}, rules, 1);
	ASSERT_EQ(b.err, 0);
	EXPECT_FALSE(b.plan.hands_back);
}

} // namespace
