// SPDX-License-Identifier: GPL-2.0
/* What a batch means.  After each commit the guest finds just what the model says. */
#include "harness.h"

#define LOG_DIRTY MEMSLOT_ENTRY_LOG_DIRTY_PAGES
#define READONLY MEMSLOT_ENTRY_READONLY

/*
 * Tests of this fixture speak of units: 8 pages, or an eighth of a huge page
 * so that slots begin and end inside of huge pages.  The window has UNITS.
 */
#define UNITS 16

FIXTURE(layout) {
	struct vm vm;
	unsigned int unit;
	struct memslot_commit reply;
};

FIXTURE_VARIANT(layout) {
	enum pool_kind pool;
	unsigned int unit;
};

FIXTURE_VARIANT_ADD(layout, small_pages) {
	.pool = POOL_SMALL_PAGES,
	.unit = 8,
};

FIXTURE_VARIANT_ADD(layout, huge_pages) {
	.pool = POOL_HUGE_PAGES,
	.unit = 64,
};

FIXTURE_SETUP(layout)
{
	self->unit = variant->unit;
	ASSERT_TRUE(vm_create(&self->vm, 2, UNITS * self->unit, variant->pool));
	self->vm.window_pages = UNITS * self->unit;
	ASSERT_TRUE(vm_bind(&self->vm));
}

FIXTURE_TEARDOWN(layout)
{
	vm_destroy(&self->vm);
}

/* vm_region() in units */
static struct memslot_entry units(const FIXTURE_DATA(layout) *self, __u32 slot, unsigned int at,
				  unsigned int size, unsigned int from)
{
	return vm_region(&self->vm, slot, at * self->unit, size * self->unit,
			 from * self->unit);
}

/* Today's layout, made by KVM's own ioctl and seen by the guest. */
static bool given(FIXTURE_DATA(layout) *self, const struct memslot_entry *entries,
		  unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		if (vm_set_region(&self->vm, &entries[i]))
			return false;
	return vm_check(&self->vm);
}

/* Applies the batch and compares all it reports, and what the guest sees, with the model. */
#define APPLY(entries) \
	ASSERT_TRUE(vm_apply(&self->vm, entries, ARRAY_SIZE(entries), &self->reply))

#define GIVEN(entries) ASSERT_TRUE(given(self, entries, ARRAY_SIZE(entries)))

/* The model is not alone in saying what is reported: each test has its own numbers. */
#define CHANGES(_created, _deleted, _replaced, _moved, _reflagged)	\
	do {								\
		EXPECT_EQ(_created, self->reply.created);		\
		EXPECT_EQ(_deleted, self->reply.deleted);		\
		EXPECT_EQ(_replaced, self->reply.replaced);		\
		EXPECT_EQ(_moved, self->reply.moved);			\
		EXPECT_EQ(_reflagged, self->reply.reflagged);		\
	} while (0)

#define UNITS_ARE(_kept, _remapped, _removed, _added)				\
	do {									\
		EXPECT_EQ((_kept) * self->unit, self->reply.pages_kept);	\
		EXPECT_EQ((_remapped) * self->unit, self->reply.pages_remapped); \
		EXPECT_EQ((_removed) * self->unit, self->reply.pages_removed);	\
		EXPECT_EQ((_added) * self->unit, self->reply.pages_added);	\
	} while (0)

TEST_F(layout, create)
{
	const struct memslot_entry batch[] = { units(self, 1, 2, 4, 0) };

	APPLY(batch);
	CHANGES(1, 0, 0, 0, 0);
	UNITS_ARE(0, 0, 0, 4);
}

TEST_F(layout, delete)
{
	const struct memslot_entry today[] = { units(self, 1, 2, 4, 0), units(self, 2, 6, 4, 4) };
	const struct memslot_entry batch[] = { absent(1) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 1, 0, 0, 0);
	UNITS_ARE(0, 0, 4, 0);
}

TEST_F(layout, delete_all)
{
	const struct memslot_entry today[] = { units(self, 1, 2, 4, 0), units(self, 2, 6, 4, 4),
					       in_smm(units(self, 7, 1, 9, 0)) };
	const struct memslot_entry batch[] = { absent(2), absent(1), in_smm(absent(7)) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 3, 0, 0, 0);
	UNITS_ARE(0, 0, 17, 0);
}

TEST_F(layout, replace_host_memory)
{
	const struct memslot_entry today[] = { units(self, 1, 4, 4, 0), units(self, 2, 8, 4, 4) };
	const struct memslot_entry batch[] = { units(self, 1, 4, 4, 8) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 0, 1, 0, 0);
	UNITS_ARE(0, 4, 0, 0);
}

/* By less than a unit: the huge pages of old and new are not congruent. */
TEST_F(layout, replace_host_memory_by_its_neighbour)
{
	const struct memslot_entry today[] = { units(self, 1, 4, 4, 0) };
	struct memslot_entry batch[] = { today[0] };

	GIVEN(today);
	batch[0].userspace_addr += PAGE;
	APPLY(batch);
	CHANGES(0, 0, 1, 0, 0);
	UNITS_ARE(0, 4, 0, 0);
}

TEST_F(layout, replace_everything)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 4, 0) };
	const struct memslot_entry batch[] = { with_flags(units(self, 1, 2, 6, 8), READONLY) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 0, 1, 0, 0);
	UNITS_ARE(0, 2, 2, 4);
}

TEST_F(layout, toggle_readonly)
{
	const struct memslot_entry today[] = { units(self, 1, 4, 4, 0), units(self, 2, 8, 4, 4) };
	const struct memslot_entry readonly[] = { with_flags(today[0], READONLY) };
	const struct memslot_entry writable[] = { today[0] };
	const __u64 gpa = today[0].guest_phys_addr;
	const __u32 *word = (__u32 *)(self->vm.pool + 8);

	GIVEN(today);
	ASSERT_TRUE(vm_store(&self->vm, 0, gpa, 1, 0x111));
	ASSERT_EQ(0, self->vm.mmio_writes);
	APPLY(readonly);
	CHANGES(0, 0, 1, 0, 0);
	UNITS_ARE(4, 0, 0, 0);
	ASSERT_TRUE(vm_store(&self->vm, 0, gpa, 4 * self->unit, 0x222));
	ASSERT_EQ(4 * self->unit, self->vm.mmio_writes);
	ASSERT_EQ(0x111, *word);
	APPLY(writable);
	CHANGES(0, 0, 1, 0, 0);
	UNITS_ARE(4, 0, 0, 0);
	ASSERT_TRUE(vm_store(&self->vm, 0, gpa, 4 * self->unit, 0x333));
	ASSERT_EQ(0, self->vm.mmio_writes);
	ASSERT_EQ(0x333, *word);
}

/* Flash: from ROM to MMIO and back */
TEST_F(layout, readonly_goes_and_comes)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 2, 0),
					       with_flags(units(self, 2, 2, 2, 2), READONLY) };
	const struct memslot_entry gone[] = { absent(2) };
	const struct memslot_entry back[] = { today[1] };

	GIVEN(today);
	APPLY(gone);
	CHANGES(0, 1, 0, 0, 0);
	APPLY(back);
	CHANGES(1, 0, 0, 0, 0);
	ASSERT_TRUE(vm_store(&self->vm, 0, WINDOW, 4 * self->unit, 1));
	ASSERT_EQ(2 * self->unit, self->vm.mmio_writes);
}

TEST_F(layout, move)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 4, 0), units(self, 2, 4, 4, 4) };
	const struct memslot_entry batch[] = { units(self, 1, 10, 4, 0) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 0, 0, 1, 0);
	UNITS_ARE(0, 0, 4, 4);
}

TEST_F(layout, move_over_itself)
{
	const struct memslot_entry today[] = { units(self, 1, 4, 4, 0) };
	const struct memslot_entry batch[] = { units(self, 1, 6, 4, 0) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 0, 0, 1, 0);
	UNITS_ARE(0, 2, 2, 2);
}

TEST_F(layout, move_and_reflag)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 4, 0) };
	const struct memslot_entry batch[] = { with_flags(units(self, 1, 8, 4, 0), LOG_DIRTY) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 0, 1, 0, 0);
	UNITS_ARE(0, 0, 4, 4);
}

TEST_F(layout, reflag)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 4, 0), units(self, 2, 4, 4, 4) };
	const struct memslot_entry on[] = { with_flags(today[0], LOG_DIRTY) };
	const struct memslot_entry off[] = { today[0] };

	GIVEN(today);
	APPLY(on);
	CHANGES(0, 0, 0, 0, 1);
	UNITS_ARE(4, 0, 0, 0);
	APPLY(off);
	CHANGES(0, 0, 0, 0, 1);
	UNITS_ARE(4, 0, 0, 0);
}

/* A BAR moved over another one that goes */
TEST_F(layout, move_into_the_place_of_a_deleted_one)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 4, 0), units(self, 2, 6, 4, 4) };
	const struct memslot_entry batch[] = { units(self, 1, 6, 4, 0), absent(2) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 1, 0, 1, 0);
	UNITS_ARE(0, 4, 4, 0);
}

TEST_F(layout, move_into_a_place_that_another_leaves)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 4, 0), units(self, 2, 4, 4, 4) };
	const struct memslot_entry batch[] = { units(self, 1, 4, 4, 0), units(self, 2, 8, 4, 4) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 0, 0, 2, 0);
	UNITS_ARE(0, 4, 4, 4);
}

TEST_F(layout, swap_of_two_places)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 4, 0), units(self, 2, 8, 4, 4) };
	const struct memslot_entry batch[] = { units(self, 1, 8, 4, 0), units(self, 2, 0, 4, 4) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 0, 0, 2, 0);
	UNITS_ARE(0, 8, 0, 0);
}

TEST_F(layout, rotation_of_three_places)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 3, 0), units(self, 2, 3, 3, 3),
					       units(self, 3, 6, 3, 6) };
	const struct memslot_entry batch[] = { units(self, 1, 3, 3, 0), units(self, 2, 6, 3, 3),
					       units(self, 3, 0, 3, 6) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 0, 0, 3, 0);
	UNITS_ARE(0, 9, 0, 0);
}

TEST_F(layout, swap_of_two_ids)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 4, 0), units(self, 2, 8, 6, 4) };
	const struct memslot_entry batch[] = { units(self, 2, 0, 4, 0), units(self, 1, 8, 6, 4) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 0, 2, 0, 0);
	UNITS_ARE(10, 0, 0, 0);
}

TEST_F(layout, split)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 16, 0) };
	struct memslot_entry batch[16];
	unsigned int i;

	GIVEN(today);
	for (i = 0; i < 16; i++)
		batch[i] = units(self, 1 + i, i, 1, i);
	APPLY(batch);
	CHANGES(15, 0, 1, 0, 0);
	UNITS_ARE(16, 0, 0, 0);
}

/* Not on the boundary of a unit */
TEST_F(layout, split_anywhere)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 12, 0) };
	struct memslot_entry batch[] = { today[0], today[0] };
	const __u64 first = (5 * self->unit + 3) * PAGE;

	GIVEN(today);
	batch[0].memory_size = first;
	batch[1].slot = 2;
	batch[1].guest_phys_addr += first;
	batch[1].userspace_addr += first;
	batch[1].memory_size -= first;
	APPLY(batch);
	CHANGES(1, 0, 1, 0, 0);
	UNITS_ARE(12, 0, 0, 0);
}

TEST_F(layout, split_around_other_memory)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 12, 0) };
	const struct memslot_entry batch[] = { units(self, 1, 0, 5, 0), units(self, 2, 5, 1, 13),
					       units(self, 3, 6, 6, 6) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(2, 0, 1, 0, 0);
	UNITS_ARE(11, 1, 0, 0);
}

TEST_F(layout, split_around_a_hole)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 12, 0) };
	const struct memslot_entry batch[] = { units(self, 1, 0, 5, 0), units(self, 3, 6, 6, 6) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(1, 0, 1, 0, 0);
	UNITS_ARE(11, 0, 1, 0);
}

TEST_F(layout, merge)
{
	struct memslot_entry today[16], batch[16];
	unsigned int i;

	for (i = 0; i < 16; i++) {
		today[i] = units(self, 1 + i, i, 1, i);
		batch[i] = absent(1 + i);
	}
	batch[5] = units(self, 6, 0, 16, 0);
	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 15, 1, 0, 0);
	UNITS_ARE(16, 0, 0, 0);
}

TEST_F(layout, split_and_merge_again_and_again)
{
	const struct memslot_entry whole[] = { units(self, 1, 0, 9, 0), absent(2), absent(3) };
	const struct memslot_entry split[] = { units(self, 1, 0, 3, 0), units(self, 2, 3, 3, 3),
					       units(self, 3, 6, 3, 6) };
	const struct memslot_entry remapped[] = { units(self, 1, 0, 3, 0), units(self, 2, 3, 3, 12),
						  units(self, 3, 6, 3, 6) };
	unsigned int i;

	GIVEN(split);
	for (i = 0; i < 3; i++) {
		APPLY(whole);
		APPLY(remapped);
		APPLY(whole);
		UNITS_ARE(6, 3, 0, 0);
		APPLY(split);
		UNITS_ARE(9, 0, 0, 0);
	}
}

TEST_F(layout, grow)
{
	const struct memslot_entry today[] = { units(self, 1, 4, 4, 4) };
	const struct memslot_entry up[] = { units(self, 1, 4, 6, 4) };
	const struct memslot_entry down[] = { units(self, 1, 1, 9, 1) };

	GIVEN(today);
	APPLY(up);
	CHANGES(0, 0, 1, 0, 0);
	UNITS_ARE(4, 0, 0, 2);
	APPLY(down);
	CHANGES(0, 0, 1, 0, 0);
	UNITS_ARE(6, 0, 0, 3);
}

TEST_F(layout, grow_over_a_neighbour)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 4, 0), units(self, 2, 4, 4, 8) };
	const struct memslot_entry batch[] = { units(self, 1, 0, 7, 0), absent(2) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(0, 1, 1, 0, 0);
	UNITS_ARE(4, 3, 1, 0);
}

TEST_F(layout, shrink)
{
	const struct memslot_entry today[] = { units(self, 1, 2, 10, 2) };
	const struct memslot_entry end[] = { units(self, 1, 2, 7, 2) };
	const struct memslot_entry start[] = { units(self, 1, 5, 4, 5) };

	GIVEN(today);
	APPLY(end);
	CHANGES(0, 0, 1, 0, 0);
	UNITS_ARE(7, 0, 3, 0);
	APPLY(start);
	UNITS_ARE(4, 0, 3, 0);
}

/* One neighbour takes what the other gives. */
TEST_F(layout, boundary_moves)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 8, 0), units(self, 2, 8, 8, 8) };
	const struct memslot_entry kept[] = { units(self, 1, 0, 5, 0), units(self, 2, 5, 11, 5) };
	const struct memslot_entry remapped[] = { units(self, 1, 0, 10, 0),
						  units(self, 2, 10, 6, 0) };

	GIVEN(today);
	APPLY(kept);
	CHANGES(0, 0, 2, 0, 0);
	UNITS_ARE(16, 0, 0, 0);
	APPLY(remapped);
	CHANGES(0, 0, 2, 0, 0);
	UNITS_ARE(10, 6, 0, 0);
}

TEST_F(layout, both_address_spaces_at_once)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 6, 0),
					       in_smm(units(self, 1, 0, 6, 0)) };
	const struct memslot_entry batch[] = {
		units(self, 1, 0, 2, 0),
		units(self, 2, 2, 2, 8),
		units(self, 3, 4, 2, 4),
		in_smm(units(self, 1, 0, 9, 0)),
		in_smm(units(self, 2, 12, 2, 8)),
	};

	GIVEN(today);
	APPLY(batch);
	CHANGES(3, 0, 2, 0, 0);
	UNITS_ARE(10, 2, 0, 5);
	EXPECT_EQ(1, self->reply.grace_periods);
}

/* The same ids and the same gfns in the other space stay what they were. */
TEST_F(layout, one_address_space_at_a_time)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 6, 0),
					       in_smm(units(self, 1, 0, 6, 6)) };
	const struct memslot_entry normal[] = { units(self, 1, 3, 6, 0) };
	const struct memslot_entry smm[] = { in_smm(units(self, 1, 0, 4, 0)),
					     in_smm(units(self, 2, 4, 2, 10)) };

	GIVEN(today);
	APPLY(normal);
	UNITS_ARE(0, 3, 3, 3);
	APPLY(smm);
	UNITS_ARE(2, 4, 0, 0);
}

/* Exchanges between the spaces are no moves: ids belong to one space. */
TEST_F(layout, memory_changes_its_address_space)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 4, 0), units(self, 2, 4, 4, 4) };
	const struct memslot_entry batch[] = { absent(1), in_smm(units(self, 1, 0, 4, 0)) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(1, 1, 0, 0, 0);
	UNITS_ARE(0, 0, 4, 4);
}

/* Every order of four entries that need each other's place */
TEST_F(layout, order_has_no_meaning)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 3, 0), units(self, 2, 3, 3, 3),
					       units(self, 3, 6, 3, 6) };
	const struct memslot_entry wanted[] = { absent(1), units(self, 2, 0, 3, 3),
						units(self, 3, 3, 3, 12), units(self, 4, 6, 3, 6) };
	const struct memslot_entry undo[] = { today[0], today[1], today[2], absent(4) };
	unsigned int order, i, n;

	GIVEN(today);
	for (order = 0; order < 24; order++) {
		struct memslot_entry batch[4], pool[4];
		unsigned int rest = order;

		memcpy(pool, wanted, sizeof(pool));
		for (i = 0; i < 4; i++) {
			n = rest % (4 - i);
			rest /= 4 - i;
			batch[i] = pool[n];
			memmove(&pool[n], &pool[n + 1], (3 - n) * sizeof(pool[0]));
		}
		ASSERT_EQ(0, device_commit(self->vm.device, 0, batch, 4, &self->reply))
			TH_LOG("order %u", order);
		CHANGES(1, 1, 1, 1, 0);
		UNITS_ARE(3, 6, 0, 0);
		model_apply(&self->vm, batch, 4);
		if (order % 8 == 0) {
			ASSERT_TRUE(vm_check(&self->vm));
		}
		ASSERT_EQ(0, device_commit(self->vm.device, 0, undo, 4, &self->reply));
		model_apply(&self->vm, undo, 4);
	}
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(layout, equal_entries_are_no_work)
{
	const struct memslot_entry today[] = {
		units(self, 1, 0, 4, 0),
		with_flags(units(self, 2, 4, 4, 4), LOG_DIRTY | READONLY),
		in_smm(units(self, 1, 0, 4, 0)),
	};

	GIVEN(today);
	APPLY(today);
	CHANGES(0, 0, 0, 0, 0);
	UNITS_ARE(0, 0, 0, 0);
	EXPECT_EQ(MEMSLOT_STRATEGY_NONE, self->reply.strategy);
	EXPECT_EQ(MEMSLOT_PARK_NOT, self->reply.park_cause);
	EXPECT_EQ(0, self->reply.grace_periods);
	EXPECT_EQ(0, self->reply.ns_fenced);
	ASSERT_EQ(0, device_commit(self->vm.device, MEMSLOT_COMMIT_PARK, today, 3, &self->reply));
	EXPECT_EQ(MEMSLOT_STRATEGY_NONE, self->reply.strategy);
	EXPECT_EQ(0, self->reply.grace_periods);
}

TEST_F(layout, equal_entries_among_others)
{
	const struct memslot_entry today[] = { units(self, 1, 0, 4, 0), units(self, 2, 4, 4, 4),
					       in_smm(units(self, 1, 0, 4, 0)) };
	const struct memslot_entry batch[] = { today[0], units(self, 3, 9, 2, 9), today[2],
					       units(self, 2, 4, 5, 4) };

	GIVEN(today);
	APPLY(batch);
	CHANGES(1, 0, 1, 0, 0);
	UNITS_ARE(4, 0, 0, 3);
}

/* As often as the huge-page boundaries allow: nothing is left over from before. */
TEST_F(layout, back_and_forth)
{
	const struct memslot_entry one[] = { units(self, 1, 0, 8, 0), units(self, 2, 8, 8, 8) };
	const struct memslot_entry two[] = { units(self, 1, 8, 8, 0), units(self, 2, 0, 8, 8) };
	unsigned int i;

	GIVEN(one);
	for (i = 0; i < 4; i++) {
		APPLY(two);
		UNITS_ARE(0, 16, 0, 0);
		APPLY(one);
		UNITS_ARE(0, 16, 0, 0);
	}
}

TEST_F(layout, kvm_after_us)
{
	const struct memslot_entry batch[] = { units(self, 1, 0, 4, 0), units(self, 2, 4, 4, 4),
					       units(self, 3, 8, 4, 8),
					       in_smm(units(self, 1, 0, 4, 4)) };
	const struct memslot_entry by_kvm[] = {
		units(self, 1, 12, 4, 0), /* move */
		with_flags(units(self, 2, 4, 4, 4), LOG_DIRTY), /* reflag */
		absent(3),
		units(self, 4, 0, 4, 12), /* create */
		in_smm(absent(1)),
	};
	const struct memslot_entry overlapping = units(self, 5, 15, 2, 0);
	unsigned int i;

	APPLY(batch);
	for (i = 0; i < ARRAY_SIZE(by_kvm); i++) {
		ASSERT_EQ(0, vm_set_region(&self->vm, &by_kvm[i])) TH_LOG("%u", i);
		ASSERT_TRUE(vm_check(&self->vm));
	}
	ASSERT_EQ(-EEXIST, kvm_set_region(self->vm.fd, &overlapping));
}

TEST_F(layout, kvm_and_us_by_turns)
{
	unsigned int i;

	for (i = 0; i < 8; i++) {
		const unsigned int at = i % 4;
		const struct memslot_entry ours[] = {
			units(self, 1, at, 3, 0),
			units(self, 2 + i % 2, at + 3, 2, 6),
			i ? absent(2 + !(i % 2)) : units(self, 4, 14, 1, 14),
		};
		const struct memslot_entry kvms[] = { units(self, 9, 10 + at, 1, 12), absent(9) };

		APPLY(ours);
		ASSERT_EQ(0, vm_set_region(&self->vm, &kvms[0]));
		ASSERT_TRUE(vm_check(&self->vm));
		if (i % 2) {
			ASSERT_EQ(0, vm_set_region(&self->vm, &kvms[1]));
		}
	}
}

#define MSR_KVM_WALL_CLOCK 0x11
#define MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01
#define CLOCK_OFFSET 0x100 /* in its page */

static bool set_msr(const struct vm *vm, __u32 msr, __u64 value)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} msrs = {
		.header.nmsrs = 1,
		.entry = { .index = msr, .data = value },
	};

	return ioctl(vm->vcpu[0], KVM_SET_MSRS, &msrs) == 1;
}

/* Has KVM written a clock to this page of the pool?  Wipes it. */
static bool clock_is_there(const struct vm *vm, unsigned int page)
{
	__u32 *clock = (__u32 *)(vm->pool + page * PAGE + CLOCK_OFFSET);
	const bool there = clock[1] || clock[2] || clock[3];

	memset(clock, 0, 32);
	return there;
}

/*
 * Accesses that KVM makes by itself, with a cache of the last slot that was
 * found.  Slots 2 and 3 come and go so that the memory of a slot that is gone is
 * not at once that of the next.
 */
TEST_F(layout, wall_clock_is_written_to_the_new_memory)
{
	const __u64 clock = WINDOW + CLOCK_OFFSET;
	unsigned int round, i;

	for (round = 0; round < 12; round++) {
		const struct memslot_entry batch[] = {
			units(self, 1, 0, 4, 4 * (round % 3)),
			units(self, 2, 4, 1, round % 4),
			units(self, 3, 5, 1, round % 4),
		};

		ASSERT_EQ(0, device_commit(self->vm.device, 0, batch, round % 2 ? 1 : 3,
					   &self->reply));
		ASSERT_TRUE(set_msr(&self->vm, MSR_KVM_WALL_CLOCK, clock));
		for (i = 0; i < 3; i++) {
			ASSERT_EQ(i == round % 3,
				  clock_is_there(&self->vm, 4 * i * self->unit));
		}
	}
}

/* The same with a cache of the host address, which only a new generation renews */
TEST_F(layout, system_time_is_written_to_the_new_memory)
{
	const struct memslot_entry steps[3] = { units(self, 1, 0, 4, 0), units(self, 1, 0, 4, 4),
						units(self, 1, 0, 4, 8) };
	const __u64 clock = WINDOW + CLOCK_OFFSET;
	struct kvm_clock_data now = {};
	unsigned int round, i;
	__u32 word;

	ASSERT_EQ(0, vm_set_region(&self->vm, &steps[2]));
	ASSERT_TRUE(set_msr(&self->vm, MSR_KVM_SYSTEM_TIME_NEW, clock | 1));
	ASSERT_TRUE(vm_scan(&self->vm, 0, WINDOW, 1, &word));
	ASSERT_TRUE(clock_is_there(&self->vm, 8 * self->unit));
	for (round = 0; round < 9; round++) {
		ASSERT_EQ(0, device_commit(self->vm.device, 0, &steps[round % 3], 1,
					   &self->reply));
		/* It is written before the vCPU runs next. */
		ASSERT_EQ(0, ioctl(self->vm.fd, KVM_SET_CLOCK, &now));
		ASSERT_TRUE(vm_scan(&self->vm, 0, WINDOW, 1, &word));
		for (i = 0; i < 3; i++) {
			ASSERT_EQ(i == round % 3,
				  clock_is_there(&self->vm, 4 * i * self->unit));
		}
	}
}

/* ---- Any number of entries ---- */

#define MANY 512

FIXTURE(many) {
	struct vm vm;
};

FIXTURE_VARIANT(many) {
	unsigned int entries;
	bool both;
};

FIXTURE_VARIANT_ADD(many, entries_1) {
	.entries = 1,
};

FIXTURE_VARIANT_ADD(many, entries_3) {
	.entries = 3,
};

FIXTURE_VARIANT_ADD(many, entries_64) {
	.entries = 64,
};

FIXTURE_VARIANT_ADD(many, entries_512) {
	.entries = MANY,
};

FIXTURE_VARIANT_ADD(many, entries_3_in_both_spaces) {
	.entries = 3,
	.both = true,
};

FIXTURE_VARIANT_ADD(many, entries_64_in_both_spaces) {
	.entries = 64,
	.both = true,
};

FIXTURE_VARIANT_ADD(many, entries_512_in_both_spaces) {
	.entries = MANY,
	.both = true,
};

FIXTURE_SETUP(many)
{
	ASSERT_TRUE(vm_create(&self->vm, 2, 2 * MANY, POOL_SMALL_PAGES));
	self->vm.window_pages = 2 * variant->entries;
	ASSERT_TRUE(vm_bind(&self->vm));
}

FIXTURE_TEARDOWN(many)
{
	vm_destroy(&self->vm);
}

/* Create, then remap, move and delete: however many, they wait as often as one does. */
TEST_F(many, one_wait_for_all)
{
	const unsigned int n = variant->entries;
	struct memslot_entry entries[MANY];
	struct memslot_commit reply;
	unsigned int i;

	/* slots of one page, every other one a hole */
	for (i = 0; i < n; i++) {
		entries[i] = vm_region(&self->vm, 1000 + i, 2 * i, 1, i);
		entries[i].address_space = variant->both && i % 2;
	}
	ASSERT_TRUE(vm_apply(&self->vm, entries, n, &reply));
	ASSERT_EQ(n, reply.created);
	ASSERT_EQ(n, reply.pages_added);
	ASSERT_EQ(1, reply.grace_periods);

	for (i = 0; i < n; i++)
		entries[i].userspace_addr += MANY * PAGE;
	ASSERT_TRUE(vm_apply(&self->vm, entries, n, &reply));
	ASSERT_EQ(n, reply.replaced);
	ASSERT_EQ(n, reply.pages_remapped);
	ASSERT_EQ(1, reply.grace_periods);

	for (i = 0; i < n; i++)
		entries[i].guest_phys_addr += PAGE;
	ASSERT_TRUE(vm_apply(&self->vm, entries, n, &reply));
	ASSERT_EQ(n, reply.moved);
	ASSERT_EQ(grace_periods_of_removal(), reply.grace_periods);

	for (i = 0; i < n; i++)
		entries[i].memory_size = 0;
	ASSERT_TRUE(vm_apply(&self->vm, entries, n, &reply));
	ASSERT_EQ(n, reply.deleted);
	ASSERT_EQ(n, reply.pages_removed);
	ASSERT_EQ(grace_periods_of_removal(), reply.grace_periods);
}

/* ---- Staging ---- */

FIXTURE(staging) {
	struct vm vm;
	struct memslot_entry today, a, b, c, bad;
	struct memslot_stage stage;
	struct memslot_commit commit;
};

FIXTURE_SETUP(staging)
{
	ASSERT_TRUE(vm_create(&self->vm, 2, 64, POOL_SMALL_PAGES));
	self->vm.window_pages = 64;
	self->today = vm_region(&self->vm, 1, 0, 8, 0);
	self->a = vm_region(&self->vm, 2, 8, 8, 8);
	self->b = vm_region(&self->vm, 3, 16, 8, 16);
	self->c = in_smm(vm_region(&self->vm, 2, 24, 8, 24));
	self->bad = vm_region(&self->vm, 4, 7, 2, 0);
	ASSERT_EQ(0, vm_set_region(&self->vm, &self->today));
	ASSERT_TRUE(vm_bind(&self->vm));
}

FIXTURE_TEARDOWN(staging)
{
	vm_destroy(&self->vm);
}

TEST_F(staging, nothing_happens_before_the_commit)
{
	const struct memslot_entry gone = absent(1);

	ASSERT_EQ(0, device_stage(self->vm.device, &self->a, 1, &self->stage));
	ASSERT_EQ(0, device_stage(self->vm.device, &gone, 1, &self->stage));
	ASSERT_EQ(MEMSLOT_NO_ENTRY, self->stage.failed_index);
	ASSERT_EQ(MEMSLOT_REASON_NONE, self->stage.reason);
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(staging, staged_and_inline_are_one_batch)
{
	struct expectation expectation;
	const struct memslot_entry all[] = { self->a, self->b, absent(1), self->c };

	ASSERT_EQ(0, device_stage(self->vm.device, &all[0], 1, &self->stage));
	ASSERT_EQ(0, device_stage(self->vm.device, &all[1], 1, &self->stage));
	model_expect(&self->vm, all, 4, &expectation);
	ASSERT_EQ(0, device_commit(self->vm.device, 0, &all[2], 2, &self->commit));
	ASSERT_TRUE(reply_matches(&self->commit, &expectation));
	ASSERT_EQ(grace_periods_of_removal(), self->commit.grace_periods);
	model_apply(&self->vm, all, 4);
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(staging, is_empty_after_a_commit)
{
	ASSERT_EQ(0, device_stage(self->vm.device, &self->a, 1, &self->stage));
	ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &self->commit));
	ASSERT_EQ(1, self->commit.created);
	model_apply(&self->vm, &self->a, 1);
	ASSERT_TRUE(vm_check(&self->vm));
	/* If it were still there this would be a duplicate. */
	ASSERT_TRUE(vm_apply(&self->vm, &self->a, 1, &self->commit));
	ASSERT_EQ(MEMSLOT_STRATEGY_NONE, self->commit.strategy);
	self->a.memory_size = 0;
	ASSERT_TRUE(vm_apply(&self->vm, &self->a, 1, &self->commit));
}

TEST_F(staging, is_kept_after_a_failure)
{
	unsigned int i;

	ASSERT_EQ(0, device_stage(self->vm.device, &self->a, 1, &self->stage));
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(-EEXIST,
			  device_commit(self->vm.device, 0, &self->bad, 1, &self->commit));
		ASSERT_EQ(1, self->commit.failed_index);
		ASSERT_TRUE(vm_check(&self->vm));
	}
	ASSERT_EQ(0, device_commit(self->vm.device, 0, &self->b, 1, &self->commit));
	ASSERT_EQ(2, self->commit.created);
	model_apply(&self->vm, &self->a, 1);
	model_apply(&self->vm, &self->b, 1);
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(staging, is_kept_after_a_refused_stage)
{
	struct memslot_entry refused[] = { self->b, self->c };

	refused[1].reserved = 1;
	ASSERT_EQ(0, device_stage(self->vm.device, &self->a, 1, &self->stage));
	ASSERT_EQ(-EINVAL, device_stage(self->vm.device, refused, 2, &self->stage));
	ASSERT_EQ(1, self->stage.failed_index);
	ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &self->commit));
	ASSERT_EQ(1, self->commit.created);
	model_apply(&self->vm, &self->a, 1);
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(staging, is_kept_after_test_only)
{
	ASSERT_EQ(0, device_stage(self->vm.device, &self->a, 1, &self->stage));
	ASSERT_EQ(0, device_commit(self->vm.device, MEMSLOT_COMMIT_TEST_ONLY, &self->b, 1,
				   &self->commit));
	ASSERT_EQ(2, self->commit.created);
	ASSERT_TRUE(vm_check(&self->vm));
	ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &self->commit));
	ASSERT_EQ(1, self->commit.created);
	model_apply(&self->vm, &self->a, 1);
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(staging, is_dropped_by_reset)
{
	ASSERT_EQ(0, device_reset(self->vm.device));
	ASSERT_EQ(0, device_stage(self->vm.device, &self->a, 1, &self->stage));
	ASSERT_EQ(0, device_reset(self->vm.device));
	ASSERT_EQ(0, device_reset(self->vm.device));
	ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &self->commit));
	ASSERT_EQ(MEMSLOT_STRATEGY_NONE, self->commit.strategy);
	ASSERT_TRUE(vm_check(&self->vm));
	/* The file works on. */
	ASSERT_EQ(0, device_stage(self->vm.device, &self->b, 1, &self->stage));
	ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &self->commit));
	model_apply(&self->vm, &self->b, 1);
	ASSERT_TRUE(vm_check(&self->vm));
}

/* The batch is judged by the layout of the commit, not by that of the staging. */
TEST_F(staging, kvm_changes_the_layout_meanwhile)
{
	const struct memslot_entry gone = absent(1);

	ASSERT_EQ(0, device_stage(self->vm.device, &self->bad, 1, &self->stage));
	ASSERT_EQ(-EEXIST, device_commit(self->vm.device, 0, NULL, 0, &self->commit));
	ASSERT_EQ(0, vm_set_region(&self->vm, &gone));
	ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &self->commit));
	model_apply(&self->vm, &self->bad, 1);
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(staging, kvm_takes_the_place_meanwhile)
{
	const struct memslot_entry taken = vm_region(&self->vm, 9, 15, 1, 40);

	ASSERT_EQ(0, device_stage(self->vm.device, &self->a, 1, &self->stage));
	ASSERT_EQ(0, vm_set_region(&self->vm, &taken));
	ASSERT_EQ(-EEXIST, device_commit(self->vm.device, 0, NULL, 0, &self->commit));
	ASSERT_EQ(0, self->commit.failed_index);
	ASSERT_EQ(MEMSLOT_REASON_OVERLAP_SLOT, self->commit.reason);
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(staging, generation_tells_of_others)
{
	__u64 first[MEMSLOT_MAX_ADDRESS_SPACES], second[MEMSLOT_MAX_ADDRESS_SPACES];

	ASSERT_TRUE(vm_generations(&self->vm, first));
	ASSERT_NE(first[0], first[1]);
	ASSERT_TRUE(vm_generations(&self->vm, second));
	ASSERT_EQ(first[0], second[0]);
	ASSERT_EQ(first[1], second[1]);
	ASSERT_EQ(0, vm_set_region(&self->vm, &self->a));
	ASSERT_TRUE(vm_generations(&self->vm, second));
	ASSERT_LT(first[0], second[0]);
	ASSERT_EQ(first[1], second[1]);
}

/* ---- Random batches, from a seed that a failure prints ---- */

#define RANDOM_SLOTS 8
#define RANDOM_ROUNDS 150
#define RANDOM_PAGES 64

static __u32 next_random(__u32 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* Would the layout have two slots in one place?  Then the first wrong entry, else -1. */
static int expected_error(const struct vm *vm, const struct memslot_entry *entries,
			  unsigned int count)
{
	static struct vm wanted;
	unsigned int i, n;

	for (i = 0; i < count; i++) {
		for (n = 0; n < i; n++)
			if (entries[n].slot == entries[i].slot &&
			    entries[n].address_space == entries[i].address_space)
				return -EINVAL;
	}
	for (i = 0; i < count; i++)
		if (!entries[i].memory_size &&
		    !model_find(vm, entries[i].address_space, entries[i].slot))
			return -ENOENT;

	wanted = *vm;
	model_apply(&wanted, entries, count);
	for (i = 0; i < wanted.nr_slots; i++) {
		const struct memslot_entry *a = &wanted.slots[i];

		for (n = 0; n < i; n++) {
			const struct memslot_entry *b = &wanted.slots[n];

			if (a->address_space == b->address_space &&
			    a->guest_phys_addr < b->guest_phys_addr + b->memory_size &&
			    b->guest_phys_addr < a->guest_phys_addr + a->memory_size)
				return -EEXIST;
		}
	}
	return 0;
}

static struct memslot_entry random_entry(const struct vm *vm, __u32 *state)
{
	const unsigned int at = next_random(state) % RANDOM_PAGES;
	const unsigned int room = RANDOM_PAGES - at;
	struct memslot_entry entry;

	entry = vm_region(vm, 1 + next_random(state) % RANDOM_SLOTS, at,
			  1 + next_random(state) % (room < 12 ? room : 12), 0);
	/* mostly memory that keeps its host address */
	if (next_random(state) % 4)
		entry.userspace_addr += at * PAGE;
	else
		entry.userspace_addr += next_random(state) % 32 * PAGE;
	entry.address_space = !(next_random(state) % 4);
	entry.flags = next_random(state) % 4;
	if (next_random(state) % 4 == 0)
		entry.memory_size = 0;
	return entry;
}

/* Refused batches that are malformed, too, and some that ask for a dirty bitmap */
static void spoil(struct memslot_entry *entry, __u64 *bitmap, __u32 *state)
{
	switch (next_random(state) % 24) {
	case 0:
		entry->guest_phys_addr++;
		break;
	case 1:
		entry->userspace_addr ^= 1ULL << 63;
		break;
	case 2:
		entry->memory_size += 8;
		break;
	case 3:
		entry->slot = 0x7fff;
		break;
	case 4:
		entry->address_space = 2;
		break;
	case 5:
		entry->flags |= 1U << (2 + next_random(state) % 30);
		break;
	case 6:
		entry->reserved = 1;
		break;
	case 7:
		entry->dirty_bitmap = (unsigned long)bitmap + next_random(state) % 2 * 4;
		entry->dirty_bitmap_size = 8;
		break;
	case 8:
		entry->dirty_bitmap = (unsigned long)bitmap;
		entry->dirty_bitmap_size = next_random(state) % 3 * 8;
		break;
	case 9:
		entry->dirty_bitmap = 4096;
		entry->dirty_bitmap_size = 8;
		break;
	}
}

/*
 * Whatever a batch is, its dry run says what the commit says: the errno, the
 * entry and the reason, or the whole report.
 */
TEST(test_only_and_commit_agree)
{
	static struct vm vm;
	unsigned int round, applied = 0, refused = 0;
	const __u32 seed = (__u32)(seconds() * 1e6) | 1;
	__u32 state = seed;

	ASSERT_TRUE(vm_create(&vm, 2, 2 * RANDOM_PAGES, POOL_SMALL_PAGES));
	ASSERT_TRUE(vm_bind(&vm));
	for (round = 0; round < 5 * RANDOM_ROUNDS; round++) {
		const unsigned int count = 1 + next_random(&state) % 4;
		const bool replaces = next_random(&state) % 8 == 0;
		const bool stale = next_random(&state) % 16 == 0;
		struct memslot_commit said[2];
		struct memslot_entry entries[5];
		unsigned int i, dry;
		__u64 bitmap[2];
		int err[2];

		for (i = 0; i < count; i++) {
			entries[i] = random_entry(&vm, &state);
			if (next_random(&state) % 4 == 0)
				spoil(&entries[i], bitmap, &state);
		}
		if (replaces)
			entries[count] = *model_find(&vm, 0, GUEST_SLOT);
		for (dry = 2; dry--;) {
			said[dry] = empty_commit(dry ? MEMSLOT_COMMIT_TEST_ONLY : 0);
			if (replaces) {
				said[dry].flags |= MEMSLOT_COMMIT_REPLACE_ALL;
				said[dry].replace_spaces = 1;
			}
			if (stale) {
				said[dry].flags |= MEMSLOT_COMMIT_IF_GENERATION;
				said[dry].if_generation[1] = 1;
			}
			err[dry] = device_commit_with(vm.device, &said[dry], entries,
						      count + replaces);
		}
		/* What only the commit knows. */
		if (!err[0]) {
			ASSERT_EQ(said[0].strategy == MEMSLOT_STRATEGY_NONE ? 0 :
				  said[0].tombstones			    ? 2 :
									      1,
				  said[0].grace_periods);
			ASSERT_LE(said[1].generation[0], said[0].generation[0]);
			ASSERT_EQ(0, said[1].ns_fenced);
			said[1].ns_fenced = said[0].ns_fenced;
			memcpy(said[1].generation, said[0].generation,
			       sizeof(said[0].generation));
		}
		said[1].flags = said[0].flags;
		ASSERT_EQ(err[0], err[1]) TH_LOG("seed %u, round %u", seed, round);
		ASSERT_EQ(0, memcmp(&said[0], &said[1], sizeof(said[0])))
			TH_LOG("seed %u, round %u: entry %d, reason %u, not %d, %u", seed, round,
			       said[0].failed_index, said[0].reason, said[1].failed_index,
			       said[1].reason);
		*(err[0] ? &refused : &applied) += 1;
	}
	ASSERT_LT(RANDOM_ROUNDS / 4, applied);
	ASSERT_LT(RANDOM_ROUNDS / 4, refused);
	vm_destroy(&vm);
}

TEST(random_batches)
{
	static struct vm vm;
	unsigned int round, applied = 0, refused = 0;
	const __u32 seed = (__u32)(seconds() * 1e6) | 1;
	__u32 state = seed;

	ASSERT_TRUE(vm_create(&vm, 2, 2 * RANDOM_PAGES, POOL_SMALL_PAGES));
	vm.window_pages = RANDOM_PAGES;
	ASSERT_TRUE(vm_bind(&vm));
	for (round = 0; round < RANDOM_ROUNDS; round++) {
		const unsigned int count = 1 + next_random(&state) % 5;
		struct memslot_entry entries[5];
		struct memslot_commit reply;
		unsigned int i;
		int error;

		for (i = 0; i < count; i++)
			entries[i] = random_entry(&vm, &state);
		error = expected_error(&vm, entries, count);
		if (!error) {
			ASSERT_TRUE(vm_apply(&vm, entries, count, &reply))
				TH_LOG("seed %u, round %u", seed, round);
			applied++;
		} else {
			ASSERT_EQ(error, device_commit(vm.device, 0, entries, count, &reply))
				TH_LOG("seed %u, round %u", seed, round);
			ASSERT_LT(reply.failed_index, count);
			refused++;
			if (refused % 8 == 0) {
				ASSERT_TRUE(vm_check(&vm))
					TH_LOG("seed %u, round %u", seed, round);
			}
		}
	}
	ASSERT_TRUE(vm_check(&vm));
	/* Both kinds were tried. */
	ASSERT_LT(RANDOM_ROUNDS / 10, applied);
	ASSERT_LT(RANDOM_ROUNDS / 10, refused);
	vm_destroy(&vm);
}
