// SPDX-License-Identifier: GPL-2.0
/* Memory that goes away with nothing in its place: whole slots, parts of slots, many at once. */
#include "harness.h"

#define SPUN 32 /* pages that all vCPUs read and execute */
#define ASIDE 64 /* pages of the window from here on come and go */
#define MANY 512

FIXTURE(uncover) {
	struct vm vm;
	struct spinner spinners[2];
	struct memslot_commit reply;
};

static bool start_all(struct vm *vm, struct spinner *spinners, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		if (!spinner_start(&spinners[i], vm, vm->vcpus - count + i, guest_spin, WINDOW,
				   SPUN))
			return false;
	return true;
}

/* All still run, and nobody has left KVM_RUN. */
static bool stop_all(struct spinner *spinners, unsigned int count)
{
	bool ok = true;
	unsigned int i;

	for (i = 0; i < count; i++) {
		ok &= spinner_progresses(&spinners[i], 2);
		ok &= !kvm_has_tdp_mmu() || !spinner_interrupted(&spinners[i]);
		ok &= spinner_stop(&spinners[i]);
	}
	return ok;
}

static bool make_vm(struct vm *vm, unsigned int vcpus)
{
	struct memslot_entry spun;

	if (!vm_create(vm, vcpus, 2 * MANY + ASIDE, POOL_SMALL_PAGES))
		return false;
	vm->window_pages = ASIDE + 64;
	spun = vm_region(vm, 1, 0, SPUN, 0);
	if (vm_set_region(vm, &spun))
		return false;
	spun = in_smm(spun);
	return !vm_set_region(vm, &spun) && vm_bind(vm);
}

/* Two vCPUs run, and two are there to look at memory for the model. */
FIXTURE_SETUP(uncover)
{
	ASSERT_TRUE(make_vm(&self->vm, 2 + ARRAY_SIZE(self->spinners)));
	ASSERT_TRUE(start_all(&self->vm, self->spinners, ARRAY_SIZE(self->spinners)));
}

FIXTURE_TEARDOWN(uncover)
{
	EXPECT_TRUE(stop_all(self->spinners, ARRAY_SIZE(self->spinners)));
	vm_destroy(&self->vm);
}

TEST_F(uncover, delete_in_both_address_spaces)
{
	const struct memslot_entry there[] = { vm_region(&self->vm, 9, ASIDE, 8, 40),
					       in_smm(vm_region(&self->vm, 9, ASIDE, 8, 48)) };
	const struct memslot_entry gone[] = { absent(9), in_smm(absent(9)) };
	unsigned int i;

	for (i = 0; i < 4; i++) {
		/* by turns one after the other, and both at once */
		ASSERT_TRUE(vm_apply(&self->vm, there, 2, &self->reply));
		EXPECT_EQ(1, self->reply.grace_periods);
		ASSERT_TRUE(vm_apply(&self->vm, gone, 1 + i % 2, &self->reply));
		EXPECT_EQ(grace_periods_of_removal(), self->reply.grace_periods);
		if (i % 2 == 0) {
			ASSERT_TRUE(vm_apply(&self->vm, &gone[1], 1, &self->reply));
			EXPECT_EQ(grace_periods_of_removal(), self->reply.grace_periods);
		}
	}
}

TEST_F(uncover, parts_of_a_slot)
{
	const struct memslot_entry whole = vm_region(&self->vm, 9, ASIDE, 32, 64);
	const struct memslot_entry parts[] = {
		/* without pages 4 to 7, 12 to 15 and 20 to 31 */
		vm_region(&self->vm, 9, ASIDE, 4, 64),
		vm_region(&self->vm, 10, ASIDE + 8, 4, 72),
		vm_region(&self->vm, 11, ASIDE + 16, 4, 80),
	};
	const struct memslot_entry shrunk[] = {
		vm_region(&self->vm, 9, ASIDE + 1, 2, 65), /* at both ends */
		vm_region(&self->vm, 10, ASIDE + 9, 3, 73),
		absent(11),
	};
	const struct memslot_entry gone[] = { absent(9), absent(10) };
	const unsigned int uncovered = kvm_has_tdp_mmu() && kvm_can_nest();

	ASSERT_TRUE(vm_apply(&self->vm, &whole, 1, &self->reply));
	ASSERT_TRUE(vm_apply(&self->vm, parts, 3, &self->reply));
	EXPECT_EQ(3 * uncovered, self->reply.tombstones);
	ASSERT_TRUE(vm_apply(&self->vm, shrunk, 3, &self->reply));
	EXPECT_EQ(4 * uncovered, self->reply.tombstones);
	ASSERT_TRUE(vm_apply(&self->vm, gone, 2, &self->reply));
	EXPECT_EQ(2 * uncovered, self->reply.tombstones);
}

/* Not of a slot with a dirty log, which parks. */
TEST_F(uncover, move_away_and_over_itself)
{
	const struct memslot_entry places[] = {
		vm_region(&self->vm, 9, ASIDE, 16, 64),
		vm_region(&self->vm, 9, ASIDE + 32, 16, 64),
		vm_region(&self->vm, 9, ASIDE + 40, 16, 64),
		vm_region(&self->vm, 9, ASIDE + 30, 16, 64),
	};
	unsigned int i;

	ASSERT_TRUE(vm_apply(&self->vm, &places[0], 1, &self->reply));
	for (i = 1; i < 16; i++) {
		ASSERT_TRUE(vm_apply(&self->vm, &places[i % 4], 1, &self->reply));
		EXPECT_EQ(1, self->reply.moved);
		EXPECT_EQ(grace_periods_of_removal(), self->reply.grace_periods);
	}
}

TEST_F(uncover, mixed_with_all_other_changes)
{
	const struct memslot_entry before[] = {
		vm_region(&self->vm, 9, ASIDE, 8, 64),
		vm_region(&self->vm, 10, ASIDE + 8, 8, 72),
		vm_region(&self->vm, 11, ASIDE + 16, 8, 80),
		vm_region(&self->vm, 12, ASIDE + 24, 8, 88),
	};
	const struct memslot_entry after[] = {
		absent(9), /* its second half is taken over by the next one */
		vm_region(&self->vm, 10, ASIDE + 4, 8, 100), /* loses its own second half */
		with_flags(before[2], MEMSLOT_ENTRY_LOG_DIRTY_PAGES),
		with_flags(before[3], MEMSLOT_ENTRY_READONLY),
		vm_region(&self->vm, 13, ASIDE + 40, 8, 110),
		in_smm(vm_region(&self->vm, 1, 0, SPUN, 0)), /* stays */
	};
	const unsigned int uncovered = kvm_has_tdp_mmu() && kvm_can_nest();
	const struct memslot_entry gone = absent(13);
	unsigned int i;

	for (i = 0; i < 4; i++) {
		ASSERT_TRUE(vm_apply(&self->vm, before, 4, &self->reply));
		ASSERT_TRUE(vm_apply(&self->vm, after, 6, &self->reply));
		EXPECT_EQ(2 * uncovered, self->reply.tombstones);
		EXPECT_EQ(1 + uncovered, self->reply.grace_periods);
		ASSERT_TRUE(vm_apply(&self->vm, &gone, 1, &self->reply));
	}
}

TEST_F(uncover, many_slots_at_once)
{
	static struct memslot_entry there[MANY], gone[MANY];
	unsigned int i;

	for (i = 0; i < MANY; i++) {
		there[i] = vm_region(&self->vm, 501 + i, ASIDE + 2 * i, 1, ASIDE + i);
		gone[i] = absent(501 + i);
	}
	self->vm.window_pages = ASIDE + 2 * MANY;
	ASSERT_TRUE(vm_apply(&self->vm, there, MANY, &self->reply));
	EXPECT_EQ(MANY, self->reply.created);
	ASSERT_TRUE(vm_apply(&self->vm, gone, MANY, &self->reply));
	EXPECT_EQ(MANY, self->reply.deleted);
	EXPECT_EQ(grace_periods_of_removal(), self->reply.grace_periods);
}

/* Counts only: nothing but the commits disturbs the vCPUs, however many they are. */
FIXTURE(uncover_beside) {
	struct vm vm;
	struct spinner spinners[8];
	struct memslot_commit reply;
};

FIXTURE_VARIANT(uncover_beside) {
	unsigned int vcpus;
};

FIXTURE_VARIANT_ADD(uncover_beside, one_vcpu) { .vcpus = 1 };
FIXTURE_VARIANT_ADD(uncover_beside, two_vcpus) { .vcpus = 2 };
FIXTURE_VARIANT_ADD(uncover_beside, four_vcpus) { .vcpus = 4 };
FIXTURE_VARIANT_ADD(uncover_beside, eight_vcpus) { .vcpus = 8 };

FIXTURE_SETUP(uncover_beside)
{
	ASSERT_TRUE(make_vm(&self->vm, variant->vcpus));
	ASSERT_TRUE(start_all(&self->vm, self->spinners, variant->vcpus));
}

FIXTURE_TEARDOWN(uncover_beside)
{
	EXPECT_TRUE(stop_all(self->spinners, variant->vcpus));
	vm_destroy(&self->vm);
}

static int fenced_commit(FIXTURE_DATA(uncover_beside) *self, const struct memslot_entry *entry)
{
	int err = device_commit(self->vm.device, 0, entry, 1, &self->reply);

	if (!err && kvm_has_tdp_mmu() && self->reply.strategy != MEMSLOT_STRATEGY_FENCE)
		err = -EPROTO;
	return err ?: (int)self->reply.grace_periods;
}

/* As a VMM does with a window into a device's memory, fifty times a second */
TEST_F(uncover_beside, window_mapped_and_unmapped)
{
	const struct memslot_entry there = vm_region(&self->vm, 9, ASIDE, 16, 64);
	const struct memslot_entry gone = absent(9);
	unsigned int i;

	for (i = 0; i < 50; i++) {
		ASSERT_EQ(1, fenced_commit(self, &there));
		usleep(10000);
		ASSERT_EQ(grace_periods_of_removal(), fenced_commit(self, &gone));
		usleep(10000);
	}
}

TEST_F(uncover_beside, slot_moved)
{
	const struct memslot_entry places[] = { vm_region(&self->vm, 9, ASIDE, 16, 64),
						vm_region(&self->vm, 9, ASIDE + 32, 16, 64) };
	unsigned int i;

	ASSERT_EQ(1, fenced_commit(self, &places[0]));
	for (i = 1; i < 32; i++) {
		ASSERT_EQ(grace_periods_of_removal(), fenced_commit(self, &places[i % 2]));
		ASSERT_EQ(1, self->reply.moved);
	}
}

TEST_F(uncover_beside, slot_shrunk_and_grown)
{
	const struct memslot_entry sizes[] = { vm_region(&self->vm, 9, ASIDE, 16, 64),
					       vm_region(&self->vm, 9, ASIDE, 8, 64) };
	unsigned int i;

	ASSERT_EQ(1, fenced_commit(self, &sizes[0]));
	for (i = 1; i < 32; i++)
		ASSERT_EQ(i % 2 ? grace_periods_of_removal() : 1,
			  fenced_commit(self, &sizes[i % 2]));
}
