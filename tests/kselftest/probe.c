// SPDX-License-Identifier: GPL-2.0
/*
 * The other tests judge by what the guest sees.  Here the guest's view is
 * compared with layouts that KVM's own ioctl made; /dev/memslot is not used.
 */
#include "harness.h"

FIXTURE(probe) {
	struct vm vm;
};

FIXTURE_SETUP(probe)
{
	ASSERT_TRUE(vm_create(&self->vm, 2, 64, POOL_SMALL_PAGES));
	self->vm.window_pages = 64;
}

FIXTURE_TEARDOWN(probe)
{
	vm_destroy(&self->vm);
}

TEST_F(probe, empty_window_is_a_hole)
{
	__u32 words[2][64];
	unsigned int i;

	ASSERT_TRUE(vm_scan(&self->vm, 0, WINDOW, 64, words[0]));
	ASSERT_TRUE(vm_scan(&self->vm, 1, WINDOW, 64, words[1]));
	for (i = 0; i < 64; i++) {
		ASSERT_EQ(HOLE, words[0][i]);
		ASSERT_EQ(HOLE, words[1][i]);
	}
}

TEST_F(probe, slots_are_seen_in_their_address_space)
{
	struct memslot_entry normal = vm_region(&self->vm, 1, 8, 16, 32);
	struct memslot_entry smm = in_smm(vm_region(&self->vm, 1, 4, 8, 0));
	__u32 words[2][64];
	unsigned int i;

	ASSERT_EQ(0, vm_set_region(&self->vm, &normal));
	ASSERT_EQ(0, vm_set_region(&self->vm, &smm));
	ASSERT_TRUE(vm_scan(&self->vm, 0, WINDOW, 64, words[0]));
	ASSERT_TRUE(vm_scan(&self->vm, 1, WINDOW, 64, words[1]));
	for (i = 0; i < 64; i++) {
		ASSERT_EQ(i >= 8 && i < 24 ? i - 8 + 32 + 1 : HOLE, words[0][i]);
		ASSERT_EQ(i >= 4 && i < 12 ? i - 4 + 1 : HOLE, words[1][i]);
	}
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(probe, a_wrong_model_is_noticed)
{
	struct memslot_entry region = vm_region(&self->vm, 1, 8, 16, 32);
	struct memslot_entry moved = vm_region(&self->vm, 1, 9, 16, 32);

	ASSERT_EQ(0, vm_set_region(&self->vm, &region));
	ASSERT_TRUE(vm_check(&self->vm));
	ASSERT_EQ(0, kvm_set_region(self->vm.fd, &moved));
	ASSERT_FALSE(vm_check(&self->vm));
	model_apply(&self->vm, &moved, 1);
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(probe, stores_reach_writable_memory_only)
{
	struct memslot_entry writable = vm_region(&self->vm, 1, 0, 4, 0);
	struct memslot_entry readonly =
		with_flags(vm_region(&self->vm, 2, 4, 4, 4), MEMSLOT_ENTRY_READONLY);
	unsigned int i;

	ASSERT_EQ(0, vm_set_region(&self->vm, &writable));
	ASSERT_EQ(0, vm_set_region(&self->vm, &readonly));
	ASSERT_TRUE(vm_store(&self->vm, 0, WINDOW, 12, 0x1234));
	ASSERT_EQ(8, self->vm.mmio_writes);
	for (i = 0; i < 8; i++) {
		ASSERT_EQ(i < 4 ? 0x1234 : 0, *(__u32 *)(self->vm.pool + i * PAGE + 8));
	}
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(probe, a_spinning_vcpu_notices_a_hole)
{
	struct memslot_entry region = vm_region(&self->vm, 1, 0, 8, 0), gone = absent(1);
	struct spinner spinner;

	ASSERT_EQ(0, vm_set_region(&self->vm, &region));
	ASSERT_TRUE(spinner_start(&spinner, &self->vm, 0, guest_spin, WINDOW, 8));
	ASSERT_TRUE(spinner_progresses(&spinner, 100));
	ASSERT_EQ(0, vm_set_region(&self->vm, &gone));
	pthread_join(spinner.thread, NULL);
	ASSERT_EQ(1, spinner.failed);
}

TEST_F(probe, a_spinning_vcpu_can_be_stopped)
{
	struct memslot_entry region = vm_region(&self->vm, 1, 0, 8, 0);
	struct spinner spinners[2];

	ASSERT_EQ(0, vm_set_region(&self->vm, &region));
	region = in_smm(region);
	ASSERT_EQ(0, vm_set_region(&self->vm, &region));
	ASSERT_TRUE(spinner_start(&spinners[0], &self->vm, 0, guest_spin, WINDOW, 8));
	ASSERT_TRUE(spinner_start(&spinners[1], &self->vm, 1, guest_spin, WINDOW, 8));
	ASSERT_TRUE(spinner_progresses(&spinners[0], 10));
	ASSERT_TRUE(spinner_stop(&spinners[0]));
	ASSERT_TRUE(spinner_stop(&spinners[1]));
	ASSERT_EQ(0, spinner_interrupted(&spinners[0]));
	ASSERT_TRUE(vm_check(&self->vm));
}

/* Those that cut huge pages would prove nothing without. */
TEST_F(probe, huge_pages_are_mapped_as_such)
{
	struct memslot_entry region;
	struct vm vm;

	ASSERT_TRUE(vm_create(&vm, 1, 1024, POOL_HUGE_PAGES));
	vm.window_pages = 1024;
	region = vm_region(&vm, 1, 0, 1024, 0);
	ASSERT_EQ(0, vm_set_region(&vm, &region));
	ASSERT_EQ(0, vm_statistic(&vm, "pages_2m"));
	ASSERT_TRUE(vm_check(&vm));
	ASSERT_EQ(2, vm_statistic(&vm, "pages_2m"));
	vm_destroy(&vm);
}
