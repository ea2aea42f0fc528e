// SPDX-License-Identifier: GPL-2.0
/* Dirty logging of slots that a batch made, and what becomes of the log when they change. */
#include <fcntl.h>

#include "harness.h"

#define LOG_DIRTY MEMSLOT_ENTRY_LOG_DIRTY_PAGES
#define READONLY MEMSLOT_ENTRY_READONLY
#define PAGES 64

/* A log as a mask of pages: slots here have 64 pages at most. */
#define PAGE_BIT(n) (1ULL << (n))
#define FIRST_PAGES(n) ((n) == 64 ? ~0ULL : (1ULL << (n)) - 1)

FIXTURE(dirty) {
	struct vm vm;
	bool manual;
	bool initially_set;
	struct memslot_commit reply;
};

FIXTURE_VARIANT(dirty) {
	__u64 mode; /* of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 */
};

FIXTURE_VARIANT_ADD(dirty, cleared_by_get) {
	.mode = 0,
};

FIXTURE_VARIANT_ADD(dirty, cleared_by_hand) {
	.mode = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
};

FIXTURE_VARIANT_ADD(dirty, initially_set) {
	.mode = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET,
};

FIXTURE_SETUP(dirty)
{
	struct kvm_enable_cap capability = {
		.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		.args[0] = variant->mode,
	};

	ASSERT_TRUE(vm_create(&self->vm, 2, 2 * PAGES, POOL_SMALL_PAGES));
	self->vm.window_pages = PAGES;
	self->manual = variant->mode;
	self->initially_set = variant->mode & KVM_DIRTY_LOG_INITIALLY_SET;
	ASSERT_EQ(0, call_ioctl(self->vm.fd, KVM_ENABLE_CAP, &capability));
	ASSERT_TRUE(vm_bind(&self->vm));
}

FIXTURE_TEARDOWN(dirty)
{
	vm_destroy(&self->vm);
}

static int get_log(int vm_fd, __u32 address_space, __u32 slot, __u64 *log)
{
	struct kvm_dirty_log argument = {
		.slot = slot | address_space << 16,
		.dirty_bitmap = log,
	};

	*log = 0;
	return call_ioctl(vm_fd, KVM_GET_DIRTY_LOG, &argument);
}

/* Reads the log of a slot and starts a new one, in whichever way the VM does that. */
static int harvest(FIXTURE_DATA(dirty) *self, __u32 address_space, __u32 slot, __u64 *log)
{
	const struct memslot_entry *entry = model_find(&self->vm, address_space, slot);
	struct kvm_clear_dirty_log clear = {
		.slot = slot | address_space << 16,
		.dirty_bitmap = log,
	};
	int err;

	err = get_log(self->vm.fd, address_space, slot, log);
	if (err || !self->manual)
		return err;
	clear.num_pages = entry->memory_size / PAGE;
	return call_ioctl(self->vm.fd, KVM_CLEAR_DIRTY_LOG, &clear);
}

static bool log_is(FIXTURE_DATA(dirty) *self, __u32 slot, __u64 expected)
{
	__u64 log;
	int err = harvest(self, 0, slot, &log);

	if (err) {
		fprintf(stderr, "# dirty log of slot %u: %s\n", slot, strerror(-err));
		return false;
	}
	if (log != expected)
		fprintf(stderr, "# dirty log of slot %u: 0x%llx, not 0x%llx\n", slot, log,
			expected);
	return log == expected;
}

/* The guest writes to these pages of the window. */
static bool guest_writes(FIXTURE_DATA(dirty) *self, __u64 pages)
{
	unsigned int page;

	for (page = 0; page < PAGES; page++)
		if (pages & PAGE_BIT(page) &&
		    (!vm_store(&self->vm, 0, WINDOW + page * PAGE, 1, 1) ||
		     self->vm.mmio_writes))
			return false;
	return true;
}

/*
 * vm_apply() without a look at guest memory: a read that finds no translation
 * gets a writable one where it can, and KVM calls that dirty.
 */
static bool try_commit(struct vm *vm, const struct memslot_entry *entries,
		       unsigned int count, struct memslot_commit *reply)
{
	struct expectation expectation;
	int err;

	model_expect(vm, entries, count, &expectation);
	err = device_commit(vm->device, 0, entries, count, reply);
	if (err) {
		fprintf(stderr, "# commit: %s, entry %d, reason %u\n", strerror(-err),
			(int)reply->failed_index, reply->reason);
		return false;
	}
	model_apply(vm, entries, count);
	return reply_matches(reply, &expectation);
}

static bool apply(FIXTURE_DATA(dirty) *self, const struct memslot_entry *entries,
		  unsigned int count)
{
	return try_commit(&self->vm, entries, count, &self->reply);
}

static struct memslot_entry logged(const struct vm *vm, __u32 slot, unsigned int at,
				   unsigned int pages, unsigned int from)
{
	return with_flags(vm_region(vm, slot, at, pages, from), LOG_DIRTY);
}

/* Slot 1, 48 pages, logged, with an empty log and translations for every page. */
static bool given_a_logged_slot(FIXTURE_DATA(dirty) *self)
{
	const struct memslot_entry today = logged(&self->vm, 1, 0, 48, 0);
	__u64 log;

	return !vm_set_region(&self->vm, &today) && guest_writes(self, FIRST_PAGES(48)) &&
	       !harvest(self, 0, 1, &log);
}

TEST_F(dirty, created)
{
	const struct memslot_entry batch[] = { logged(&self->vm, 1, 0, 16, 0),
					       logged(&self->vm, 2, 16, 8, 16),
					       vm_region(&self->vm, 3, 24, 8, 24) };
	__u64 log;

	ASSERT_TRUE(apply(self, batch, 3));
	ASSERT_TRUE(log_is(self, 1, self->initially_set ? FIRST_PAGES(16) : 0));
	ASSERT_TRUE(log_is(self, 2, self->initially_set ? FIRST_PAGES(8) : 0));
	ASSERT_EQ(-ENOENT, get_log(self->vm.fd, 0, 3, &log));

	ASSERT_TRUE(guest_writes(self, PAGE_BIT(0) | PAGE_BIT(5) | PAGE_BIT(15) | PAGE_BIT(16) |
					       PAGE_BIT(30)));
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(0) | PAGE_BIT(5) | PAGE_BIT(15)));
	ASSERT_TRUE(log_is(self, 2, PAGE_BIT(0)));
	ASSERT_TRUE(log_is(self, 1, 0));
	ASSERT_TRUE(log_is(self, 2, 0));
	/* Again: the pages were protected anew. */
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(5) | PAGE_BIT(23)));
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(5)));
	ASSERT_TRUE(log_is(self, 2, PAGE_BIT(7)));
}

TEST_F(dirty, created_in_smm)
{
	const struct memslot_entry batch[] = { logged(&self->vm, 1, 0, 16, 0),
					       in_smm(logged(&self->vm, 1, 0, 16, 16)) };
	__u64 log;

	ASSERT_TRUE(apply(self, batch, 2));
	ASSERT_EQ(0, harvest(self, 0, 1, &log));
	ASSERT_EQ(0, harvest(self, 1, 1, &log));
	ASSERT_TRUE(vm_store(&self->vm, 1, WINDOW + 3 * PAGE, 2, 1));
	ASSERT_TRUE(log_is(self, 1, 0));
	ASSERT_EQ(0, harvest(self, 1, 1, &log));
	ASSERT_EQ(PAGE_BIT(3) | PAGE_BIT(4), log);
}

TEST_F(dirty, switched_on)
{
	const struct memslot_entry today = vm_region(&self->vm, 1, 0, 16, 0);
	const struct memslot_entry batch[] = { with_flags(today, LOG_DIRTY) };
	__u64 log;

	ASSERT_EQ(0, vm_set_region(&self->vm, &today));
	ASSERT_TRUE(guest_writes(self, FIRST_PAGES(16)));
	ASSERT_EQ(-ENOENT, get_log(self->vm.fd, 0, 1, &log));
	ASSERT_TRUE(apply(self, batch, 1));
	ASSERT_EQ(1, self->reply.reflagged);
	ASSERT_TRUE(log_is(self, 1, self->initially_set ? FIRST_PAGES(16) : 0));
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(2) | PAGE_BIT(9)));
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(2) | PAGE_BIT(9)));
}

TEST_F(dirty, switched_off)
{
	const struct memslot_entry batch[] = { vm_region(&self->vm, 1, 0, 48, 0) };
	__u64 log;

	ASSERT_TRUE(given_a_logged_slot(self));
	ASSERT_TRUE(apply(self, batch, 1));
	ASSERT_EQ(1, self->reply.reflagged);
	ASSERT_EQ(-ENOENT, get_log(self->vm.fd, 0, 1, &log));
	ASSERT_TRUE(guest_writes(self, FIRST_PAGES(48)));
}

/* With another size: what was mapped writable must not stay so. */
TEST_F(dirty, switched_on_by_a_replace)
{
	const struct memslot_entry today = vm_region(&self->vm, 1, 0, 16, 0);
	const struct memslot_entry batch[] = { logged(&self->vm, 1, 0, 20, 0) };

	ASSERT_EQ(0, vm_set_region(&self->vm, &today));
	ASSERT_TRUE(guest_writes(self, FIRST_PAGES(16)));
	ASSERT_TRUE(apply(self, batch, 1));
	ASSERT_EQ(1, self->reply.replaced);
	ASSERT_TRUE(log_is(self, 1, self->initially_set ? FIRST_PAGES(20) : 0));
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(2) | PAGE_BIT(18)));
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(2) | PAGE_BIT(18)));
}

TEST_F(dirty, split)
{
	const struct memslot_entry batch[] = { logged(&self->vm, 1, 0, 5, 0),
					       logged(&self->vm, 2, 5, 30, 5),
					       logged(&self->vm, 3, 35, 13, 35) };
	const __u64 first = PAGE_BIT(0) | PAGE_BIT(4) | PAGE_BIT(5) | PAGE_BIT(20) | PAGE_BIT(34) |
			    PAGE_BIT(47);
	const __u64 second = PAGE_BIT(4) | PAGE_BIT(6) | PAGE_BIT(35);
	const __u64 both = first | second;

	ASSERT_TRUE(given_a_logged_slot(self));
	ASSERT_TRUE(guest_writes(self, first));
	ASSERT_TRUE(apply(self, batch, 3));
	ASSERT_EQ(48, self->reply.pages_kept);
	ASSERT_TRUE(guest_writes(self, second));
	ASSERT_TRUE(log_is(self, 1, both & FIRST_PAGES(5)));
	ASSERT_TRUE(log_is(self, 2, both >> 5 & FIRST_PAGES(30)));
	ASSERT_TRUE(log_is(self, 3, both >> 35));
	/* Nothing twice, and nothing lost from here on. */
	ASSERT_TRUE(log_is(self, 2, 0));
	ASSERT_TRUE(guest_writes(self, both));
	ASSERT_TRUE(log_is(self, 1, both & FIRST_PAGES(5)));
	ASSERT_TRUE(log_is(self, 2, both >> 5 & FIRST_PAGES(30)));
	ASSERT_TRUE(log_is(self, 3, both >> 35));
}

TEST_F(dirty, split_around_other_memory)
{
	const struct memslot_entry batch[] = { logged(&self->vm, 1, 0, 10, 0),
					       logged(&self->vm, 2, 10, 10, 100),
					       logged(&self->vm, 3, 20, 28, 20) };
	const __u64 written = PAGE_BIT(9) | PAGE_BIT(10) | PAGE_BIT(19) | PAGE_BIT(20);

	ASSERT_TRUE(given_a_logged_slot(self));
	ASSERT_TRUE(guest_writes(self, written));
	ASSERT_TRUE(apply(self, batch, 3));
	ASSERT_EQ(10, self->reply.pages_remapped);
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(9)));
	/* New memory, with the log of a new slot */
	ASSERT_TRUE(log_is(self, 2, self->initially_set ? FIRST_PAGES(10) : 0));
	ASSERT_TRUE(log_is(self, 3, PAGE_BIT(0)));
	ASSERT_TRUE(guest_writes(self, FIRST_PAGES(48)));
	ASSERT_TRUE(log_is(self, 2, FIRST_PAGES(10)));
}

TEST_F(dirty, merge)
{
	const struct memslot_entry today[] = { logged(&self->vm, 1, 0, 5, 0),
					       logged(&self->vm, 2, 5, 30, 5),
					       logged(&self->vm, 3, 35, 13, 35) };
	const struct memslot_entry batch[] = { absent(1), logged(&self->vm, 2, 0, 48, 0),
					       absent(3) };
	const __u64 written = PAGE_BIT(1) | PAGE_BIT(4) | PAGE_BIT(5) | PAGE_BIT(36);
	unsigned int i;
	__u64 log;

	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, vm_set_region(&self->vm, &today[i]));
	}
	ASSERT_TRUE(guest_writes(self, FIRST_PAGES(48)));
	for (i = 1; i <= 3; i++) {
		ASSERT_EQ(0, harvest(self, 0, i, &log));
	}
	ASSERT_TRUE(guest_writes(self, written));
	ASSERT_TRUE(apply(self, batch, 3));
	ASSERT_TRUE(log_is(self, 2, written));
	ASSERT_TRUE(guest_writes(self, written << 1));
	ASSERT_TRUE(log_is(self, 2, written << 1));
	ASSERT_EQ(-ENOENT, get_log(self->vm.fd, 0, 1, &log));
}

TEST_F(dirty, grow_and_shrink)
{
	const struct memslot_entry grown[] = { logged(&self->vm, 1, 0, 60, 0) };
	const struct memslot_entry shrunk[] = { logged(&self->vm, 1, 7, 20, 7) };
	const __u64 written = PAGE_BIT(0) | PAGE_BIT(7) | PAGE_BIT(26) | PAGE_BIT(27) |
			      PAGE_BIT(47);

	ASSERT_TRUE(given_a_logged_slot(self));
	ASSERT_TRUE(guest_writes(self, written));
	ASSERT_TRUE(apply(self, grown, 1));
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(8) | PAGE_BIT(59)));
	ASSERT_TRUE(apply(self, shrunk, 1));
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(0) | PAGE_BIT(1) | PAGE_BIT(19)));
}

TEST_F(dirty, new_part_of_a_grown_slot)
{
	const struct memslot_entry grown[] = { logged(&self->vm, 1, 0, 60, 0) };
	const __u64 added = FIRST_PAGES(60) & ~FIRST_PAGES(48);

	ASSERT_TRUE(given_a_logged_slot(self));
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(3)));
	ASSERT_TRUE(apply(self, grown, 1));
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(3) | (self->initially_set ? added : 0)));
}

TEST_F(dirty, swap_of_ids)
{
	const struct memslot_entry today[] = { logged(&self->vm, 1, 0, 8, 0),
					       logged(&self->vm, 2, 8, 20, 8) };
	const struct memslot_entry batch[] = { logged(&self->vm, 2, 0, 8, 0),
					       logged(&self->vm, 1, 8, 20, 8) };
	unsigned int i;
	__u64 log;

	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, vm_set_region(&self->vm, &today[i]));
	}
	ASSERT_EQ(0, harvest(self, 0, 1, &log));
	ASSERT_EQ(0, harvest(self, 0, 2, &log));
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(2) | PAGE_BIT(8) | PAGE_BIT(27)));
	ASSERT_TRUE(apply(self, batch, 2));
	ASSERT_TRUE(log_is(self, 2, PAGE_BIT(2)));
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(0) | PAGE_BIT(19)));
}

TEST_F(dirty, readonly_toggled)
{
	const struct memslot_entry readonly[] = {
		with_flags(vm_region(&self->vm, 1, 0, 48, 0), LOG_DIRTY | READONLY)
	};
	const struct memslot_entry writable[] = { logged(&self->vm, 1, 0, 48, 0) };

	ASSERT_TRUE(given_a_logged_slot(self));
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(3) | PAGE_BIT(40)));
	ASSERT_TRUE(apply(self, readonly, 1));
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(3) | PAGE_BIT(40)));
	ASSERT_TRUE(apply(self, writable, 1));
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(4)));
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(4)));
}

/* As when KVM moves a slot: the log goes with it. */
TEST_F(dirty, move)
{
	const struct memslot_entry batch[] = { logged(&self->vm, 1, 16, 48, 0) };

	ASSERT_TRUE(given_a_logged_slot(self));
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(3) | PAGE_BIT(40)));
	ASSERT_TRUE(apply(self, batch, 1));
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(3) | PAGE_BIT(40)));
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(16) | PAGE_BIT(19)));
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(0) | PAGE_BIT(3)));
}

/* A slot that a batch does not name, or names as it is, keeps its log. */
TEST_F(dirty, untouched)
{
	const struct memslot_entry batch[] = { logged(&self->vm, 1, 0, 48, 0),
					       vm_region(&self->vm, 2, 48, 8, 64) };
	const struct memslot_entry gone[] = { absent(2) };

	ASSERT_TRUE(given_a_logged_slot(self));
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(3)));
	ASSERT_TRUE(apply(self, batch, 2));
	ASSERT_TRUE(apply(self, gone, 1));
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(5)));
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(3) | PAGE_BIT(5)));
}

TEST_F(dirty, refused_commit)
{
	const struct memslot_entry batch[] = { logged(&self->vm, 1, 0, 5, 0),
					       logged(&self->vm, 2, 5, 43, 5), absent(9) };
	struct memslot_commit reply;

	ASSERT_TRUE(given_a_logged_slot(self));
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(3) | PAGE_BIT(40)));
	ASSERT_EQ(-ENOENT, device_commit(self->vm.device, 0, batch, 3, &reply));
	ASSERT_EQ(0, device_commit(self->vm.device, MEMSLOT_COMMIT_TEST_ONLY, batch, 2, &reply));
	ASSERT_TRUE(log_is(self, 1, PAGE_BIT(3) | PAGE_BIT(40)));
}

TEST_F(dirty, kvm_reflags_our_slot_and_we_kvms)
{
	const struct memslot_entry on = logged(&self->vm, 1, 0, 16, 0);
	const struct memslot_entry off = vm_region(&self->vm, 1, 0, 16, 0);
	unsigned int i;
	__u64 log;

	ASSERT_TRUE(apply(self, &off, 1));
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, vm_set_region(&self->vm, &on));
		ASSERT_EQ(0, harvest(self, 0, 1, &log));
		ASSERT_TRUE(guest_writes(self, PAGE_BIT(i)));
		ASSERT_TRUE(log_is(self, 1, PAGE_BIT(i)));
		ASSERT_TRUE(apply(self, &off, 1));
		ASSERT_EQ(-ENOENT, get_log(self->vm.fd, 0, 1, &log));
		ASSERT_TRUE(apply(self, &on, 1));
		ASSERT_EQ(0, harvest(self, 0, 1, &log));
		ASSERT_TRUE(guest_writes(self, PAGE_BIT(i + 1)));
		ASSERT_TRUE(log_is(self, 1, PAGE_BIT(i + 1)));
		ASSERT_EQ(0, vm_set_region(&self->vm, &off));
	}
}

/*
 * A vCPU writes to all pages all the time while its slot is split and merged
 * and its log is read.  Every page that has changed since the vCPU last stood
 * still must have been reported.
 */
TEST_F(dirty, nothing_is_lost_while_a_vcpu_writes)
{
	const struct memslot_entry whole[] = { logged(&self->vm, 1, 0, 48, 0), absent(2),
					       absent(3) };
	const struct memslot_entry split[] = { logged(&self->vm, 1, 0, 15, 0),
					       logged(&self->vm, 2, 15, 17, 15),
					       logged(&self->vm, 3, 32, 16, 32) };
	__u32 snapshot[48] = {};
	struct memslot_commit reply;
	struct spinner spinner;
	unsigned int round, i, page;
	__u64 reported, log[3];

	ASSERT_EQ(0, vm_set_region(&self->vm, &split[0]));
	ASSERT_EQ(0, vm_set_region(&self->vm, &split[1]));
	ASSERT_EQ(0, vm_set_region(&self->vm, &split[2]));
	for (round = 0; round < 8; round++) {
		ASSERT_TRUE(spinner_start(&spinner, &self->vm, 0, guest_count, WINDOW, 48));
		reported = 0;
		for (i = 0; i < 6; i++) {
			ASSERT_EQ(0, device_commit(self->vm.device, 0, whole, 3, &reply));
			model_apply(&self->vm, whole, 3);
			if (i % 3 == 0) {
				ASSERT_EQ(0, harvest(self, 0, 1, &log[0]));
				reported |= log[0];
			}
			ASSERT_EQ(0, device_commit(self->vm.device, 0, split, 3, &reply));
			model_apply(&self->vm, split, 3);
			if (i % 3 == 1) {
				ASSERT_EQ(0, harvest(self, 0, 2, &log[1]));
				reported |= log[1] << 15;
			}
		}
		ASSERT_TRUE(spinner_stop(&spinner));
		for (i = 0; i < 3; i++) {
			ASSERT_EQ(0, harvest(self, 0, 1 + i, &log[i]));
		}
		reported |= log[0] | log[1] << 15 | log[2] << 32;
		for (page = 0; page < 48; page++) {
			const __u32 word = *(__u32 *)(self->vm.pool + page * PAGE + 8);

			if (word != snapshot[page]) {
				ASSERT_TRUE(reported & PAGE_BIT(page))
					TH_LOG("round %u, page %u", round, page);
			}
			snapshot[page] = word;
		}
	}
	/* The pages did change. */
	ASSERT_LT(round, snapshot[0]);
}

/* ---- A huge page that a slot's boundary cuts ---- */

#define EAGER_SPLIT "/sys/module/kvm/parameters/eager_page_split"
#define CUT 300

FIXTURE(huge) {
	struct vm vm;
	char eager_split;
};

static bool write_eager_split(char value)
{
	const int fd = open(EAGER_SPLIT, O_WRONLY | O_CLOEXEC);
	const bool ok = fd >= 0 && write(fd, &value, 1) == 1;

	close(fd);
	return ok;
}

FIXTURE_SETUP(huge)
{
	const int fd = open(EAGER_SPLIT, O_RDONLY | O_CLOEXEC);

	ASSERT_EQ(1, read(fd, &self->eager_split, 1));
	close(fd);
	ASSERT_TRUE(vm_create(&self->vm, 1, 1024, POOL_HUGE_PAGES));
	ASSERT_TRUE(vm_bind(&self->vm));
}

FIXTURE_TEARDOWN(huge)
{
	EXPECT_TRUE(write_eager_split(self->eager_split));
	vm_destroy(&self->vm);
}

/*
 * With one translation over both slots, a write to the one that is not logged
 * would make the other writable, too.
 */
TEST_F(huge, cut_and_logged_on_one_side)
{
	const struct memslot_entry whole = vm_region(&self->vm, 1, 0, 1024, 0);
	const struct memslot_entry cut[] = {
		vm_region(&self->vm, 1, 0, CUT, 0),
		vm_region(&self->vm, 2, CUT, 1024 - CUT, CUT),
	};
	const struct memslot_entry log = with_flags(cut[1], LOG_DIRTY);
	struct memslot_commit reply;
	__u64 bitmap[1024 / 64] = {};
	struct kvm_dirty_log argument = {
		.slot = 2,
		.dirty_bitmap = bitmap,
	};
	unsigned int i;

	/* KVM would split them when logging begins, and hide what this is about. */
	ASSERT_TRUE(write_eager_split('N'));
	ASSERT_EQ(0, vm_set_region(&self->vm, &whole));
	ASSERT_TRUE(vm_store(&self->vm, 0, WINDOW, 1024, 1));
	ASSERT_EQ(2, vm_statistic(&self->vm, "pages_2m"));
	ASSERT_TRUE(try_commit(&self->vm, cut, 2, &reply));
	ASSERT_EQ(1024, reply.pages_kept);
	ASSERT_TRUE(try_commit(&self->vm, &log, 1, &reply));
	ASSERT_EQ(1, reply.reflagged);

	ASSERT_TRUE(vm_store(&self->vm, 0, WINDOW + 10 * PAGE, 1, 2));
	ASSERT_TRUE(vm_store(&self->vm, 0, WINDOW + (CUT + 7) * PAGE, 2, 2));
	ASSERT_TRUE(vm_store(&self->vm, 0, WINDOW + 600 * PAGE, 1, 2));
	ASSERT_EQ(0, call_ioctl(self->vm.fd, KVM_GET_DIRTY_LOG, &argument));
	for (i = 0; i < 1024 - CUT; i++) {
		ASSERT_EQ(i == 7 || i == 8 || i == 600 - CUT, bitmap[i / 64] >> i % 64 & 1)
			TH_LOG("page %u", i);
	}
}

/* ---- The dirty ring: pages by slot id and offset, as of the write ---- */

#define RING_ENTRIES 1024U

struct ring {
	struct kvm_dirty_gfn *gfns;
	unsigned int next;
};

/* Takes everything out of the ring: a mask of pages for slots 1, 2 and 3. */
static int reap(struct vm *vm, struct ring *ring, __u64 logs[3])
{
	memset(logs, 0, 3 * sizeof(logs[0]));
	for (;;) {
		struct kvm_dirty_gfn *gfn = &ring->gfns[ring->next % RING_ENTRIES];

		if (!(__atomic_load_n(&gfn->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
			break;
		if (gfn->slot >= 1 && gfn->slot <= 3 && gfn->offset < 64)
			logs[gfn->slot - 1] |= PAGE_BIT(gfn->offset);
		else
			return -ERANGE;
		__atomic_store_n(&gfn->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		ring->next++;
	}
	return call_ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, NULL) < 0 ? -EIO : 0;
}

TEST(dirty_ring)
{
	struct kvm_enable_cap capability = {
		.cap = KVM_CAP_DIRTY_LOG_RING,
		.args[0] = RING_ENTRIES * sizeof(struct kvm_dirty_gfn),
	};
	struct memslot_commit reply;
	struct ring ring = {};
	__u64 logs[3];
	struct vm vm;

	ASSERT_TRUE(vm_create_bare(&vm, 2 * PAGES, POOL_SMALL_PAGES));
	ASSERT_EQ(0, call_ioctl(vm.fd, KVM_ENABLE_CAP, &capability));
	ASSERT_TRUE(vm_create_vcpus(&vm, 1));
	vm.window_pages = PAGES;
	ASSERT_TRUE(vm_bind(&vm));
	ring.gfns = mmap(NULL, capability.args[0], PROT_READ | PROT_WRITE, MAP_SHARED, vm.vcpu[0],
			 KVM_DIRTY_LOG_PAGE_OFFSET * PAGE);
	ASSERT_NE(MAP_FAILED, ring.gfns);

	const struct memslot_entry whole[] = { logged(&vm, 1, 0, 48, 0) };
	const struct memslot_entry split[] = { logged(&vm, 2, 0, 10, 0),
					       logged(&vm, 1, 10, 10, 10),
					       logged(&vm, 3, 20, 28, 20) };
	const struct memslot_entry merged[] = { logged(&vm, 3, 0, 48, 0), absent(1), absent(2) };

	ASSERT_TRUE(try_commit(&vm, whole, 1, &reply));
	ASSERT_TRUE(vm_store(&vm, 0, WINDOW, 48, 1));
	ASSERT_EQ(0, reap(&vm, &ring, logs));
	ASSERT_EQ(FIRST_PAGES(48), logs[0]);
	ASSERT_EQ(0, logs[1] | logs[2]);

	/* These stay writable; after the split they must be reported by their new names. */
	ASSERT_TRUE(vm_store(&vm, 0, WINDOW, 24, 2));
	ASSERT_TRUE(try_commit(&vm, split, 3, &reply));
	ASSERT_EQ(48, reply.pages_kept);
	ASSERT_EQ(0, reap(&vm, &ring, logs));
	ASSERT_EQ(FIRST_PAGES(24), logs[0]);
	ASSERT_TRUE(vm_store(&vm, 0, WINDOW, 48, 3));
	ASSERT_EQ(0, reap(&vm, &ring, logs));
	ASSERT_EQ(FIRST_PAGES(10), logs[1]);
	ASSERT_EQ(FIRST_PAGES(10), logs[0]);
	ASSERT_EQ(FIRST_PAGES(28), logs[2]);

	ASSERT_TRUE(vm_store(&vm, 0, WINDOW + 30 * PAGE, 4, 4));
	ASSERT_TRUE(try_commit(&vm, merged, 3, &reply));
	ASSERT_TRUE(vm_store(&vm, 0, WINDOW + 5 * PAGE, 30, 5));
	ASSERT_EQ(0, reap(&vm, &ring, logs));
	ASSERT_EQ(FIRST_PAGES(30) << 5 | FIRST_PAGES(4) << 10, logs[2]);
	ASSERT_EQ(0, logs[0] | logs[1]);
	munmap(ring.gfns, capability.args[0]);
	vm_destroy(&vm);
}
