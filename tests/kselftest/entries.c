// SPDX-License-Identifier: GPL-2.0
/* Entries that are refused: the errno, the index, the reason, and that nothing changed. */
#include <sys/param.h>

#include "harness.h"

#define WINDOW_PAGES 64
#define POOL_PAGES 128
#define FIRST_PAGES 16
#define FREE 40 /* page of the window where there is room */
#define FREE_PAGES 4

#define LOG_DIRTY MEMSLOT_ENTRY_LOG_DIRTY_PAGES
#define TIB (1ULL << 40)
#define ABOVE_ALL_GPAS (1ULL << 52)
#define ABOVE_ALL_USERS 0x0100000000000000ULL
#define KERNEL_ADDRESS 0xffff888000000000ULL

/* Slots 1 and 2 side by side, and slot 1 in SMM, where slot 2 is in the other space. */
static bool create(struct vm *vm)
{
	struct memslot_entry slots[3];
	unsigned int i;

	if (!vm_create(vm, 2, POOL_PAGES, POOL_SMALL_PAGES))
		return false;
	vm->window_pages = WINDOW_PAGES;
	slots[0] = vm_region(vm, 1, 0, FIRST_PAGES, 0);
	slots[1] = with_flags(vm_region(vm, 2, FIRST_PAGES, FIRST_PAGES, 16), LOG_DIRTY);
	slots[2] = in_smm(vm_region(vm, 1, FIRST_PAGES, FIRST_PAGES, 64));
	for (i = 0; i < ARRAY_SIZE(slots); i++)
		if (vm_set_region(vm, &slots[i]))
			return false;
	return vm_bind(vm);
}

/* What a test needs to show that nothing changed. */
struct before {
	__u64 generations[MEMSLOT_MAX_ADDRESS_SPACES];
};

static bool unchanged(struct vm *vm, const struct before *before)
{
	struct before now;

	if (!vm_generations(vm, now.generations))
		return false;
	if (memcmp(&now, before, sizeof(now))) {
		fprintf(stderr, "# a generation has changed\n");
		return false;
	}
	return vm_check(vm);
}

/* Is a failed commit's report right? */
static bool blames(const struct memslot_commit *reply, const struct before *before,
		   unsigned int index, __u32 reason)
{
	if (reply->failed_index != index || reply->reason != reason) {
		fprintf(stderr, "# entry %d, reason %u, not entry %d, reason %u\n",
			(int)reply->failed_index, reply->reason, (int)index, reason);
		return false;
	}
	if (reply->created || reply->deleted || reply->replaced || reply->moved ||
	    reply->reflagged || reply->grace_periods || reply->ns_fenced) {
		fprintf(stderr, "# a failed commit reports that it did something\n");
		return false;
	}
	if (memcmp(reply->generation, before->generations, sizeof(reply->generation))) {
		fprintf(stderr, "# a failed commit reports generations %llu and %llu\n",
			reply->generation[0], reply->generation[1]);
		return false;
	}
	return true;
}

/* ---- One bad entry, in every place where it can be ---- */

FIXTURE(refused) {
	struct vm vm;
	struct before before;
	struct memslot_entry bad;
	/* slots 3 and 4, and slot 3 in SMM: in nobody's way */
	struct memslot_entry good[3];
};

/*
 * The bad entry is a good one, but for what is not zero here.
 * @slot: its id; 3 if zero
 * @above_max_slot: its id is the first that is too large
 * @gpa: its address; page FREE of the window plus @gpa_add if zero
 * @size: its size; FREE_PAGES pages plus @size_add if zero
 * @hva: its host address; in the pool, plus @hva_add, if zero
 * @at_commit: depends on the layout or the VM, so that STAGE lets it pass
 */
FIXTURE_VARIANT(refused) {
	int error;
	__u32 reason;
	bool at_commit;
	bool above_max_slot;
	__u32 slot;
	__u32 address_space;
	__u32 flags;
	__u32 reserved;
	__u64 gpa;
	__u64 gpa_add;
	__u64 size;
	__u64 size_add;
	__u64 hva;
	__u64 hva_add;
};

FIXTURE_VARIANT_ADD(refused, gpa_of_1_byte) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_GPA_ALIGN,
	.gpa_add = 1,
};

FIXTURE_VARIANT_ADD(refused, gpa_of_half_a_page) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_GPA_ALIGN,
	.gpa_add = PAGE / 2,
};

FIXTURE_VARIANT_ADD(refused, size_of_1_byte) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_SIZE_ALIGN,
	.size = 1,
};

FIXTURE_VARIANT_ADD(refused, size_of_half_a_page_more) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_SIZE_ALIGN,
	.size_add = PAGE / 2,
};

FIXTURE_VARIANT_ADD(refused, hva_of_1_byte) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_HVA_ALIGN,
	.hva_add = 1,
};

FIXTURE_VARIANT_ADD(refused, hva_of_half_a_page) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_HVA_ALIGN,
	.hva_add = PAGE / 2,
};

FIXTURE_VARIANT_ADD(refused, gpa_wraps) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_GPA_RANGE,
	.gpa = -2 * PAGE,
};

FIXTURE_VARIANT_ADD(refused, gpa_ends_at_2_to_the_64) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_GPA_RANGE,
	.gpa = -FREE_PAGES * PAGE,
};

FIXTURE_VARIANT_ADD(refused, gpa_above_52_bits) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_GPA_RANGE,
	.gpa = ABOVE_ALL_GPAS,
};

FIXTURE_VARIANT_ADD(refused, gpa_grows_above_52_bits) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_GPA_RANGE,
	.gpa = ABOVE_ALL_GPAS - (FREE_PAGES - 1) * PAGE,
};

FIXTURE_VARIANT_ADD(refused, hva_of_the_kernel) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_HVA_RANGE,
	.hva = KERNEL_ADDRESS,
};

FIXTURE_VARIANT_ADD(refused, hva_not_canonical) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_HVA_RANGE,
	.hva = ABOVE_ALL_USERS,
};

FIXTURE_VARIANT_ADD(refused, hva_wraps) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_HVA_RANGE,
	.hva = -PAGE,
};

FIXTURE_VARIANT_ADD(refused, hva_tagged) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_HVA_RANGE,
	.hva_add = 1ULL << 62,
};

FIXTURE_VARIANT_ADD(refused, too_many_pages) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_TOO_LARGE,
	.size = 8 * TIB,
};

FIXTURE_VARIANT_ADD(refused, size_of_2_to_the_44_pages) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_TOO_LARGE,
	.size = 1ULL << 56,
};

FIXTURE_VARIANT_ADD(refused, slot_above_the_last) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_SLOT_ID,
	.above_max_slot = true,
};

/* KVM's own ioctl takes the address space from there. */
FIXTURE_VARIANT_ADD(refused, slot_with_an_address_space) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_SLOT_ID,
	.slot = 1 << 16 | 3,
};

FIXTURE_VARIANT_ADD(refused, slot_negative) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_SLOT_ID,
	.slot = 0xffffffff,
};

FIXTURE_VARIANT_ADD(refused, address_space_2) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_ADDRESS_SPACE,
	.address_space = 2,
};

FIXTURE_VARIANT_ADD(refused, address_space_negative) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_ADDRESS_SPACE,
	.address_space = 0xffffffff,
};

FIXTURE_VARIANT_ADD(refused, flag_2) {
	.error = EOPNOTSUPP,
	.reason = MEMSLOT_REASON_FLAGS,
	.flags = 1U << 2,
};

FIXTURE_VARIANT_ADD(refused, flag_31) {
	.error = EOPNOTSUPP,
	.reason = MEMSLOT_REASON_FLAGS,
	.flags = 1U << 31,
};

FIXTURE_VARIANT_ADD(refused, reserved_1) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_ARGUMENT,
	.reserved = 1,
};

FIXTURE_VARIANT_ADD(refused, reserved_high_bit) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_ARGUMENT,
	.reserved = 1U << 31,
};

FIXTURE_VARIANT_ADD(refused, removal_of_a_slot_above_the_last) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_SLOT_ID,
	.above_max_slot = true,
	.size_add = -FREE_PAGES * PAGE,
};

FIXTURE_VARIANT_ADD(refused, removal_in_address_space_2) {
	.error = EINVAL,
	.reason = MEMSLOT_REASON_ADDRESS_SPACE,
	.address_space = 2,
	.slot = 1,
	.size_add = -FREE_PAGES * PAGE,
};

FIXTURE_VARIANT_ADD(refused, removal_of_no_slot) {
	.error = ENOENT,
	.reason = MEMSLOT_REASON_NO_SLOT,
	.at_commit = true,
	.slot = 5,
	.size_add = -FREE_PAGES * PAGE,
};

/* There is one in the other address space. */
FIXTURE_VARIANT_ADD(refused, removal_of_a_slot_that_is_elsewhere) {
	.error = ENOENT,
	.reason = MEMSLOT_REASON_NO_SLOT,
	.at_commit = true,
	.slot = 2,
	.address_space = 1,
	.size_add = -FREE_PAGES * PAGE,
};

FIXTURE_VARIANT_ADD(refused, overlap_with_the_end_of_a_slot) {
	.error = EEXIST,
	.reason = MEMSLOT_REASON_OVERLAP_SLOT,
	.at_commit = true,
	.slot = 5,
	.gpa = WINDOW + (2 * FIRST_PAGES - 1) * PAGE,
};

FIXTURE_VARIANT_ADD(refused, overlap_with_the_start_of_a_slot) {
	.error = EEXIST,
	.reason = MEMSLOT_REASON_OVERLAP_SLOT,
	.at_commit = true,
	.slot = 5,
	.gpa = WINDOW - (FREE_PAGES - 1) * PAGE,
};

FIXTURE_VARIANT_ADD(refused, overlap_with_the_middle_of_a_slot) {
	.error = EEXIST,
	.reason = MEMSLOT_REASON_OVERLAP_SLOT,
	.at_commit = true,
	.slot = 5,
	.gpa = WINDOW + 6 * PAGE,
};

FIXTURE_VARIANT_ADD(refused, overlap_with_several_slots) {
	.error = EEXIST,
	.reason = MEMSLOT_REASON_OVERLAP_SLOT,
	.at_commit = true,
	.slot = 5,
	.gpa = WINDOW - PAGE,
	.size = 2 * (FIRST_PAGES + 1) * PAGE,
};

FIXTURE_VARIANT_ADD(refused, overlap_in_smm) {
	.error = EEXIST,
	.reason = MEMSLOT_REASON_OVERLAP_SLOT,
	.at_commit = true,
	.slot = 5,
	.address_space = 1,
	.gpa = WINDOW + 2 * (FIRST_PAGES - 1) * PAGE,
};

FIXTURE_VARIANT_ADD(refused, move_onto_a_slot) {
	.error = EEXIST,
	.reason = MEMSLOT_REASON_OVERLAP_SLOT,
	.at_commit = true,
	.slot = 2,
	.flags = LOG_DIRTY,
	.gpa = WINDOW + PAGE,
	.size = FIRST_PAGES * PAGE,
};

FIXTURE_VARIANT_ADD(refused, growth_into_a_slot) {
	.error = EEXIST,
	.reason = MEMSLOT_REASON_OVERLAP_SLOT,
	.at_commit = true,
	.slot = 1,
	.gpa = WINDOW,
	.size = (FIRST_PAGES + 1) * PAGE,
};

FIXTURE_SETUP(refused)
{
	struct memslot_info info = { .size = sizeof(info) };

	ASSERT_TRUE(create(&self->vm));
	ASSERT_EQ(0, call_ioctl(self->vm.device, MEMSLOT_IOC_INFO, &info));
	self->good[0] = vm_region(&self->vm, 3, FREE + 4, 4, 90);
	self->good[1] = vm_region(&self->vm, 4, FREE + 8, 8, 100);
	self->good[2] = in_smm(vm_region(&self->vm, 3, FREE + 4, 4, 94));

	self->bad = vm_region(&self->vm, variant->slot ?: 5, FREE, FREE_PAGES, 80);
	self->bad.address_space = variant->address_space;
	self->bad.flags = variant->flags;
	self->bad.reserved = variant->reserved;
	if (variant->above_max_slot)
		self->bad.slot = info.max_slot + 1;
	if (variant->gpa)
		self->bad.guest_phys_addr = variant->gpa;
	self->bad.guest_phys_addr += variant->gpa_add;
	if (variant->size)
		self->bad.memory_size = variant->size;
	self->bad.memory_size += variant->size_add;
	if (variant->hva)
		self->bad.userspace_addr = variant->hva;
	self->bad.userspace_addr += variant->hva_add;
	ASSERT_TRUE(vm_generations(&self->vm, self->before.generations));
}

FIXTURE_TEARDOWN(refused)
{
	vm_destroy(&self->vm);
}

/* Slots 3 and 4 and slot 3 in SMM can still be created: the file is as it was. */
static bool good_ones_work(FIXTURE_DATA(refused) *self)
{
	struct memslot_commit reply;

	return vm_apply(&self->vm, self->good, ARRAY_SIZE(self->good), &reply);
}

TEST_F(refused, staged)
{
	const struct memslot_entry entries[] = { self->good[0], self->bad, self->good[1] };
	struct memslot_stage stage;
	struct memslot_commit commit;

	if (!variant->at_commit) {
		ASSERT_EQ(-variant->error, device_stage(self->vm.device, entries, 3, &stage));
		ASSERT_EQ(1, stage.failed_index);
		ASSERT_EQ(variant->reason, stage.reason);
		/* None of them was staged. */
		ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &commit));
		ASSERT_EQ(MEMSLOT_STRATEGY_NONE, commit.strategy);
		ASSERT_TRUE(unchanged(&self->vm, &self->before));
	} else {
		ASSERT_EQ(0, device_stage(self->vm.device, entries, 3, &stage));
		ASSERT_EQ(MEMSLOT_NO_ENTRY, stage.failed_index);
		ASSERT_EQ(MEMSLOT_REASON_NONE, stage.reason);
		ASSERT_EQ(-variant->error, device_commit(self->vm.device, 0, NULL, 0, &commit));
		ASSERT_TRUE(blames(&commit, &self->before, 1, variant->reason));
		/* All of them still are. */
		ASSERT_EQ(-variant->error, device_commit(self->vm.device, 0, NULL, 0, &commit));
		ASSERT_TRUE(blames(&commit, &self->before, 1, variant->reason));
		ASSERT_EQ(0, device_reset(self->vm.device));
		ASSERT_TRUE(unchanged(&self->vm, &self->before));
	}
	ASSERT_TRUE(good_ones_work(self));
}

TEST_F(refused, inline)
{
	const struct memslot_entry entries[] = { self->good[0], self->good[1], self->bad,
						 self->good[2] };
	const __u32 flags[] = { MEMSLOT_COMMIT_TEST_ONLY, 0, MEMSLOT_COMMIT_PARK };
	struct memslot_commit reply;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		ASSERT_EQ(-variant->error,
			  device_commit(self->vm.device, flags[i], entries, 4, &reply));
		ASSERT_TRUE(blames(&reply, &self->before, 2, variant->reason));
	}
	ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &reply));
	ASSERT_EQ(MEMSLOT_STRATEGY_NONE, reply.strategy);
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
	ASSERT_TRUE(good_ones_work(self));
}

TEST_F(refused, inline_after_staged)
{
	const struct memslot_entry entries[] = { self->good[2], self->bad };
	struct memslot_stage stage;
	struct memslot_commit commit;

	ASSERT_EQ(0, device_stage(self->vm.device, self->good, 2, &stage));
	ASSERT_EQ(-variant->error, device_commit(self->vm.device, 0, entries, 2, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 3, variant->reason));
	ASSERT_TRUE(vm_check(&self->vm));

	/* Those that were staged still are, and only those. */
	ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &commit));
	ASSERT_EQ(2, commit.created);
	model_apply(&self->vm, self->good, 2);
	ASSERT_TRUE(vm_check(&self->vm));
}

/* ---- Everything else ---- */

FIXTURE(entries) {
	struct vm vm;
	struct before before;
	unsigned char *room; /* followed by a page that cannot be read */
	unsigned char *room_end;
};

FIXTURE_SETUP(entries)
{
	ASSERT_TRUE(create(&self->vm));
	self->room = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	ASSERT_NE(MAP_FAILED, self->room);
	self->room_end = self->room + 7 * PAGE;
	ASSERT_EQ(0, mprotect(self->room_end, PAGE, PROT_NONE));
	ASSERT_TRUE(vm_generations(&self->vm, self->before.generations));
}

FIXTURE_TEARDOWN(entries)
{
	vm_destroy(&self->vm);
}

/* STAGE and COMMIT with an array that is not simply one of struct memslot_entry. */
static int stage_array(FIXTURE_DATA(entries) *self, const void *array, __u32 count,
		       __u32 entry_size, struct memslot_stage *reply)
{
	*reply = (struct memslot_stage){
		.size = sizeof(*reply),
		.entries = (unsigned long)array,
		.count = count,
		.entry_size = entry_size,
	};
	return call_ioctl(self->vm.device, MEMSLOT_IOC_STAGE, reply);
}

static int commit_array(FIXTURE_DATA(entries) *self, const void *array, __u32 count,
			__u32 entry_size, struct memslot_commit *reply)
{
	*reply = (struct memslot_commit){
		.size = sizeof(*reply),
		.entries = (unsigned long)array,
		.count = count,
		.entry_size = entry_size,
	};
	return call_ioctl(self->vm.device, MEMSLOT_IOC_COMMIT, reply);
}

/* Both must refuse it, and blame the same. */
static bool array_is_refused(FIXTURE_DATA(entries) *self, const void *array, __u32 count,
			     __u32 entry_size, int error, __u32 index, __u32 reason)
{
	struct memslot_commit commit;
	struct memslot_stage stage;
	int err;

	err = stage_array(self, array, count, entry_size, &stage);
	if (err != error || stage.failed_index != index || stage.reason != reason) {
		fprintf(stderr, "# STAGE: %s, entry %d, reason %u\n", strerror(-err),
			(int)stage.failed_index, stage.reason);
		return false;
	}
	err = commit_array(self, array, count, entry_size, &commit);
	if (err != error) {
		fprintf(stderr, "# COMMIT: %s\n", strerror(-err));
		return false;
	}
	return blames(&commit, &self->before, index, reason);
}

TEST_F(entries, entry_size_too_small)
{
	const struct memslot_entry entry = vm_region(&self->vm, 3, FREE, 4, 0);
	__u32 size;

	for (size = 0; size < ENTRY_FIRST_SIZE; size++) {
		ASSERT_TRUE(array_is_refused(self, &entry, 1, size, -EINVAL, MEMSLOT_NO_ENTRY,
					     MEMSLOT_REASON_ARGUMENT));
	}
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
}

TEST_F(entries, entry_size_larger_than_a_page)
{
	const __u32 sizes[] = { PAGE + 1, 2 * PAGE, 0x80000000, 0xffffffff };
	unsigned int i;

	*(struct memslot_entry *)self->room = vm_region(&self->vm, 3, FREE, 4, 0);
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		ASSERT_TRUE(array_is_refused(self, self->room, 1, sizes[i], -E2BIG,
					     MEMSLOT_NO_ENTRY, MEMSLOT_REASON_ARGUMENT));
	}
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
}

TEST_F(entries, entry_size_larger_with_zeros)
{
	const __u32 sizes[] = { ENTRY_FIRST_SIZE, sizeof(struct memslot_entry) + 1, 64, PAGE };
	struct memslot_entry entries[3];
	struct memslot_commit commit;
	struct memslot_stage stage;
	unsigned int i, n;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		/* Other places each time, right up to the end of what can be read */
		unsigned char *array = self->room_end - ARRAY_SIZE(entries) * sizes[i];

		memset(self->room, 0, self->room_end - self->room);
		for (n = 0; n < ARRAY_SIZE(entries); n++) {
			entries[n] = vm_region(&self->vm, 3 + n, FREE + n * 8 + i, 4, 4 * n + i);
			memcpy(array + n * sizes[i], &entries[n],
			       MIN(sizes[i], sizeof(entries[n])));
		}
		if (i & 1) {
			ASSERT_EQ(0, commit_array(self, array, 3, sizes[i], &commit));
		} else {
			ASSERT_EQ(0, stage_array(self, array, 3, sizes[i], &stage));
			ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &commit));
		}
		model_apply(&self->vm, entries, ARRAY_SIZE(entries));
		ASSERT_TRUE(vm_check(&self->vm));
	}
}

TEST_F(entries, entry_size_larger_with_anything_else)
{
	const __u32 sizes[] = { sizeof(struct memslot_entry) + 1, 64, PAGE };
	unsigned int i, n, last;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (last = 0; last < 2; last++) {
			memset(self->room, 0, 3 * PAGE);
			for (n = 0; n < 3; n++) {
				struct memslot_entry entry =
					vm_region(&self->vm, 3 + n, FREE + 4 * n, 4, 0);

				memcpy(self->room + n * sizes[i], &entry, sizeof(entry));
			}
			/* of the second entry */
			self->room[last ? 2 * sizes[i] - 1 :
					  sizes[i] + sizeof(struct memslot_entry)] = 1;
			ASSERT_TRUE(array_is_refused(self, self->room, 3, sizes[i], -E2BIG, 1,
						     MEMSLOT_REASON_ENTRY_TOO_NEW));
		}
	}
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
}

TEST_F(entries, array_cannot_be_read)
{
	const void *const addresses[] = {
		NULL,
		self->room_end,
		(void *)KERNEL_ADDRESS,
		(void *)ABOVE_ALL_USERS,
		(void *)-1UL,
		(void *)-ENTRY_FIRST_SIZE,
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(addresses); i++) {
		ASSERT_TRUE(array_is_refused(self, addresses[i], 2, sizeof(struct memslot_entry),
					     -EFAULT, 0, MEMSLOT_REASON_UNREADABLE));
	}
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
}

TEST_F(entries, array_crosses_into_an_unreadable_page)
{
	const __u32 entry_size = sizeof(struct memslot_entry);
	__u32 readable, n;

	for (readable = 3 * entry_size; readable < 4 * entry_size; readable++) {
		unsigned char *array = self->room_end - readable;

		for (n = 0; n < 3; n++) {
			struct memslot_entry entry =
				vm_region(&self->vm, 3 + n, FREE + 4 * n, 4, 0);

			memcpy(array + n * entry_size, &entry, entry_size);
		}
		ASSERT_TRUE(array_is_refused(self, array, 4, entry_size, -EFAULT, 3,
					     MEMSLOT_REASON_UNREADABLE));
	}
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
}

/* The array may be anywhere when there is nothing in it. */
TEST_F(entries, none)
{
	struct memslot_commit commit;
	struct memslot_stage stage;

	ASSERT_EQ(0, stage_array(self, NULL, 0, sizeof(struct memslot_entry), &stage));
	ASSERT_EQ(MEMSLOT_NO_ENTRY, stage.failed_index);
	ASSERT_EQ(0, commit_array(self, NULL, 0, 0, &commit));
	ASSERT_EQ(0, commit_array(self, (void *)KERNEL_ADDRESS, 0, 0xffffffff, &commit));
	ASSERT_EQ(MEMSLOT_STRATEGY_NONE, commit.strategy);
	ASSERT_EQ(0, commit.grace_periods);
	ASSERT_EQ(MEMSLOT_NO_ENTRY, commit.failed_index);
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
}

TEST_F(entries, too_many)
{
	struct memslot_info info = { .size = sizeof(info) };
	struct memslot_entry *entries;
	struct memslot_commit commit;
	struct memslot_stage stage;
	unsigned int i;

	ASSERT_EQ(0, call_ioctl(self->vm.device, MEMSLOT_IOC_INFO, &info));
	ASSERT_GE(info.max_slot, info.max_entries);
	entries = calloc(info.max_entries + 1, sizeof(*entries));
	ASSERT_NE(NULL, entries);
	/* Removals of slots that do not exist: fine until they are committed */
	for (i = 0; i <= info.max_entries; i++)
		entries[i].slot = i;

	ASSERT_TRUE(array_is_refused(self, entries, info.max_entries + 1, sizeof(*entries),
				     -E2BIG, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_TOO_MANY));

	ASSERT_EQ(0, device_stage(self->vm.device, entries, info.max_entries - 1, &stage));
	ASSERT_TRUE(array_is_refused(self, entries + info.max_entries - 1, 2, sizeof(*entries),
				     -E2BIG, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_TOO_MANY));
	ASSERT_EQ(0, device_stage(self->vm.device, entries + info.max_entries - 1, 1, &stage));
	ASSERT_TRUE(array_is_refused(self, entries + info.max_entries, 1, sizeof(*entries),
				     -E2BIG, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_TOO_MANY));
	ASSERT_TRUE(array_is_refused(self, entries, 0xffffffff, sizeof(*entries), -E2BIG,
				     MEMSLOT_NO_ENTRY, MEMSLOT_REASON_TOO_MANY));

	/* The batch is still there, and wrong: slot 0 does not exist. */
	ASSERT_EQ(-ENOENT, device_commit(self->vm.device, 0, NULL, 0, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 0, MEMSLOT_REASON_NO_SLOT));
	ASSERT_EQ(0, device_reset(self->vm.device));
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
	free(entries);
}

/* The product of count and entry_size does not fit into 32 bits, or is small there. */
TEST_F(entries, count_times_size_overflows)
{
	const __u32 counts[] = { 0xffffffff, 0x80000000, 0x10000000, 0x00100000 };
	const __u32 sizes[] = { sizeof(struct memslot_entry), 64, PAGE };
	unsigned int i, n;

	for (i = 0; i < ARRAY_SIZE(counts); i++)
		for (n = 0; n < ARRAY_SIZE(sizes); n++) {
			ASSERT_TRUE(array_is_refused(self, self->room, counts[i], sizes[n],
						     -E2BIG, MEMSLOT_NO_ENTRY,
						     MEMSLOT_REASON_TOO_MANY));
		}
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
}

TEST_F(entries, duplicates)
{
	const struct memslot_entry entries[] = {
		vm_region(&self->vm, 3, FREE, 4, 0),
		in_smm(vm_region(&self->vm, 4, FREE, 4, 0)), /* another slot than the next */
		vm_region(&self->vm, 4, FREE + 4, 4, 4),
		vm_region(&self->vm, 3, FREE + 8, 4, 8),
		absent(3),
		vm_region(&self->vm, 3, FREE, 4, 0), /* the very same as the first */
	};
	struct memslot_commit commit;
	struct memslot_stage stage;

	/* inline and inline */
	ASSERT_EQ(-EINVAL, device_commit(self->vm.device, 0, entries, 4, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 3, MEMSLOT_REASON_DUPLICATE));

	/* staged and inline; several of them: the first is named */
	ASSERT_EQ(0, device_stage(self->vm.device, entries, 3, &stage));
	ASSERT_EQ(-EINVAL, device_commit(self->vm.device, 0, &entries[3], 3, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 3, MEMSLOT_REASON_DUPLICATE));
	ASSERT_EQ(-EINVAL, device_commit(self->vm.device, 0, &entries[4], 1, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 3, MEMSLOT_REASON_DUPLICATE));
	ASSERT_EQ(-EINVAL, device_commit(self->vm.device, 0, &entries[5], 1, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 3, MEMSLOT_REASON_DUPLICATE));
	ASSERT_TRUE(unchanged(&self->vm, &self->before));

	/* The staged ones are still there, and valid. */
	ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &commit));
	ASSERT_EQ(3, commit.created);
	model_apply(&self->vm, entries, 3);
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(entries, duplicates_staged_in_two_calls)
{
	const struct memslot_entry entries[] = {
		vm_region(&self->vm, 3, FREE, 4, 0),
		vm_region(&self->vm, 4, FREE + 4, 4, 4),
		absent(3),
	};
	struct memslot_commit commit;
	struct memslot_stage stage;

	ASSERT_EQ(0, device_stage(self->vm.device, entries, 2, &stage));
	ASSERT_EQ(0, device_stage(self->vm.device, &entries[2], 1, &stage));
	ASSERT_EQ(-EINVAL, device_commit(self->vm.device, 0, NULL, 0, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 2, MEMSLOT_REASON_DUPLICATE));
	ASSERT_EQ(0, device_reset(self->vm.device));
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
}

TEST_F(entries, overlap_each_other)
{
	const struct memslot_entry entries[] = {
		vm_region(&self->vm, 3, FREE, 4, 0),
		in_smm(vm_region(&self->vm, 4, FREE, 4, 0)), /* elsewhere */
		vm_region(&self->vm, 5, FREE + 4, 4, 8), /* adjacent */
		vm_region(&self->vm, 6, FREE + 7, 4, 12),
		vm_region(&self->vm, 7, FREE + 20, 4, 12),
	};
	struct memslot_commit commit;
	struct memslot_stage stage;

	ASSERT_EQ(-EEXIST, device_commit(self->vm.device, 0, entries, 5, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 3, MEMSLOT_REASON_OVERLAP_ENTRY));
	ASSERT_EQ(0, device_stage(self->vm.device, entries, 3, &stage));
	ASSERT_EQ(-EEXIST, device_commit(self->vm.device, 0, &entries[3], 2, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 3, MEMSLOT_REASON_OVERLAP_ENTRY));
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
	ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &commit));
	model_apply(&self->vm, entries, 3);
	ASSERT_TRUE(vm_check(&self->vm));
}

/* An entry that is no work still claims its place. */
TEST_F(entries, overlap_an_unchanged_one)
{
	const struct memslot_entry entries[] = {
		*model_find(&self->vm, 0, 1),
		vm_region(&self->vm, 5, FIRST_PAGES - 1, 1, 0),
	};
	const struct memslot_entry reversed[] = { entries[1], entries[0] };
	struct memslot_commit commit;

	ASSERT_EQ(-EEXIST, device_commit(self->vm.device, 0, entries, 2, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 1, MEMSLOT_REASON_OVERLAP_ENTRY));
	ASSERT_EQ(-EEXIST, device_commit(self->vm.device, 0, reversed, 2, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 1, MEMSLOT_REASON_OVERLAP_ENTRY));
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
}

/* The whole window under one entry: it fits only if all that is there goes. */
TEST_F(entries, overlap_with_one_that_stays)
{
	const struct memslot_entry entries[] = {
		absent(1),
		vm_region(&self->vm, 5, 0, WINDOW_PAGES, 0),
		absent(2),
	};
	struct memslot_commit commit;

	ASSERT_EQ(-EEXIST, device_commit(self->vm.device, 0, entries, 2, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 1, MEMSLOT_REASON_OVERLAP_SLOT));
	ASSERT_EQ(-EEXIST, device_commit(self->vm.device, 0, &entries[1], 2, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 0, MEMSLOT_REASON_OVERLAP_SLOT));
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
	ASSERT_TRUE(vm_apply(&self->vm, entries, 3, &commit));
}

/* The address that KVM_SET_TSS_ADDR gave (vm.c), where KVM needs such memory. */
TEST_F(entries, overlap_with_a_slot_of_kvm)
{
	struct memslot_entry entry = vm_region(&self->vm, 5, 0, 1, 0);
	struct memslot_commit commit;

	entry.guest_phys_addr = 0xfffbd000;
	if (kvm_set_region(self->vm.fd, &entry) != -EEXIST)
		SKIP(return, "no internal slots: Intel's KVM has, with unrestricted_guest=0");
	ASSERT_EQ(-EEXIST, device_commit(self->vm.device, 0, &entry, 1, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 0, MEMSLOT_REASON_OVERLAP_SLOT));
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
}

/* The last page that this VM can address is KVM's answer, and must be ours. */
TEST_F(entries, highest_gpa_is_that_of_kvm)
{
	struct memslot_entry entry = vm_region(&self->vm, 5, 0, 1, 0), gone = absent(5);
	struct memslot_commit commit;
	unsigned int bits;

	for (bits = 52; bits > 32; bits--) {
		entry.guest_phys_addr = (1ULL << bits) - PAGE;
		if (!kvm_set_region(self->vm.fd, &entry))
			break;
	}
	ASSERT_LT(32, bits);
	ASSERT_EQ(0, kvm_set_region(self->vm.fd, &gone));
	ASSERT_TRUE(vm_generations(&self->vm, self->before.generations));

	/* one page too high, alone and as the end of a slot */
	entry.guest_phys_addr = 1ULL << bits;
	ASSERT_EQ(-EINVAL, device_commit(self->vm.device, 0, &entry, 1, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 0, MEMSLOT_REASON_GPA_RANGE));
	entry.guest_phys_addr = (1ULL << bits) - PAGE;
	entry.memory_size = 2 * PAGE;
	ASSERT_EQ(-EINVAL, device_commit(self->vm.device, MEMSLOT_COMMIT_TEST_ONLY, &entry, 1,
					 &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 0, MEMSLOT_REASON_GPA_RANGE));
	ASSERT_EQ(-EINVAL, device_commit(self->vm.device, 0, &entry, 1, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 0, MEMSLOT_REASON_GPA_RANGE));
	ASSERT_TRUE(unchanged(&self->vm, &self->before));

	entry.memory_size = PAGE;
	ASSERT_EQ(0, device_commit(self->vm.device, 0, &entry, 1, &commit));
	ASSERT_EQ(1, commit.created);
	ASSERT_EQ(0, device_commit(self->vm.device, 0, &gone, 1, &commit));
	ASSERT_TRUE(vm_check(&self->vm));
}

/* A slot may be moved or grown beyond the last page no more than created there. */
TEST_F(entries, existing_slots_stay_below_the_highest_gpa)
{
	/* The first one changes nothing, and is still the one with index 0. */
	struct memslot_entry entries[] = { *model_find(&self->vm, 0, 1),
					   *model_find(&self->vm, 0, 2) };
	struct memslot_entry *entry = &entries[1];
	struct memslot_commit commit;

	entry->guest_phys_addr = ABOVE_ALL_GPAS - entry->memory_size;
	if (!kvm_set_region(self->vm.fd, entry))
		SKIP(return, "this VM can address 52 bits: there is nothing above");
	/* KVM has made the slot invalid for a while. */
	ASSERT_TRUE(vm_generations(&self->vm, self->before.generations));
	ASSERT_EQ(-EINVAL, device_commit(self->vm.device, 0, entries, 2, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 1, MEMSLOT_REASON_GPA_RANGE));
	entry->guest_phys_addr -= PAGE;
	entry->memory_size += PAGE;
	ASSERT_EQ(-EINVAL, device_commit(self->vm.device, 0, entries, 2, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 1, MEMSLOT_REASON_GPA_RANGE));
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
}

/* Regions near each limit: what KVM takes for a new slot we take, and nothing else. */
TEST_F(entries, regions_are_taken_as_kvm_takes_them)
{
	const __u64 hvas[] = {
		0,
		PAGE,
		1,
		0x7fffffffd000,
		0x7fffffffe000,
		0x7ffffffff000,
		0x800000000000,
		0xfffffffffffd000,
		0xffffffffffe000,
		0xfffffffffff000,
		0x100000000000000,
		0x8000000000000000,
		-PAGE,
		KERNEL_ADDRESS,
	};
	const __u64 sizes[] = { PAGE, 2 * PAGE, PAGE / 2, 1ULL << 30, 8 * TIB };
	struct memslot_entry entry = vm_region(&self->vm, 5, FREE, 1, 0), gone = absent(5);
	struct memslot_commit commit;
	unsigned int i, n, taken = 0;

	for (i = 0; i < ARRAY_SIZE(hvas); i++) {
		for (n = 0; n < ARRAY_SIZE(sizes); n++) {
			int by_kvm, by_us;

			entry.userspace_addr = hvas[i];
			entry.memory_size = sizes[n];
			by_us = device_commit(self->vm.device, MEMSLOT_COMMIT_TEST_ONLY, &entry,
					      1, &commit);
			by_kvm = kvm_set_region(self->vm.fd, &entry);
			ASSERT_EQ(by_kvm, by_us)
				TH_LOG("hva 0x%llx, size 0x%llx", hvas[i], sizes[n]);
			if (!by_kvm) {
				taken++;
				ASSERT_EQ(0, kvm_set_region(self->vm.fd, &gone));
			}
		}
	}
	ASSERT_LT(2, taken);
	ASSERT_TRUE(vm_check(&self->vm));
}

/* For a removal nothing but the slot and the address space counts. */
TEST_F(entries, removal_ignores_the_rest)
{
	struct memslot_entry entry = {
		.slot = 1,
		.flags = MEMSLOT_ENTRY_READONLY,
		.guest_phys_addr = 1,
		.userspace_addr = KERNEL_ADDRESS + 1,
	};
	struct memslot_commit commit;

	ASSERT_TRUE(vm_apply(&self->vm, &entry, 1, &commit));
	ASSERT_EQ(1, commit.deleted);
	ASSERT_EQ(FIRST_PAGES, commit.pages_removed);
}

/* Of several bad entries the first is blamed, if they are bad in the same way. */
TEST_F(entries, first_of_several_is_blamed)
{
	struct memslot_entry entries[4];
	struct memslot_commit commit;
	struct memslot_stage stage;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(entries); i++) {
		entries[i] = vm_region(&self->vm, 10 + i, FREE + i, 1, i);
		if (i)
			entries[i].guest_phys_addr++;
	}
	ASSERT_EQ(-EINVAL, device_stage(self->vm.device, entries, 4, &stage));
	ASSERT_EQ(1, stage.failed_index);
	for (i = 0; i < ARRAY_SIZE(entries); i++)
		entries[i] = absent(10 + i);
	ASSERT_EQ(-ENOENT, device_commit(self->vm.device, 0, entries, 4, &commit));
	ASSERT_TRUE(blames(&commit, &self->before, 0, MEMSLOT_REASON_NO_SLOT));
	ASSERT_TRUE(unchanged(&self->vm, &self->before));
}
