// SPDX-License-Identifier: GPL-2.0
/* Dirty logging of slots that a batch made, and what becomes of the log when they change. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

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

/*
 * Let KVM look at what the processor has logged for each vCPU (PML).  With some kernels
 * a vCPU that halts returns from KVM_RUN without that, and KVM's own call for the log
 * misses what it wrote last.  One that meets a hole returns in another way.
 */
static bool settle(struct vm *vm)
{
	unsigned int vcpu;
	__u32 word;

	for (vcpu = 0; vcpu < vm->vcpus; vcpu++)
		if (!vm_scan(vm, vcpu, WINDOW - PAGE, 1, &word) || word != HOLE)
			return false;
	return true;
}

static bool log_is(FIXTURE_DATA(dirty) *self, __u32 slot, __u64 expected)
{
	__u64 log;
	int err;

	if (!settle(&self->vm))
		return false;
	err = harvest(self, 0, slot, &log);
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
	/* What KVM looks at later, it marks in the memory that is there by then. */
	ASSERT_TRUE(settle(&self->vm));
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

/*
 * The same without anything between HLT and the commit that would make KVM look at what
 * the processor has logged; nor does that turn up in the slot that comes there.
 */
TEST_F(dirty, move_after_a_halt)
{
	const struct memslot_entry batch[] = { logged(&self->vm, 1, 16, 48, 0),
					       logged(&self->vm, 2, 0, 16, 64) };
	__u64 log;

	ASSERT_TRUE(given_a_logged_slot(self));
	ASSERT_TRUE(guest_writes(self, PAGE_BIT(3) | PAGE_BIT(40)));
	ASSERT_TRUE(apply(self, batch, 2));
	ASSERT_EQ(0, harvest(self, 0, 1, &log));
	ASSERT_EQ(PAGE_BIT(3) | PAGE_BIT(40), log);
	ASSERT_TRUE(log_is(self, 1, 0));
	ASSERT_TRUE(log_is(self, 2, self->initially_set ? FIRST_PAGES(16) : 0));
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
		ASSERT_TRUE(spinner_progresses(&spinner, 1));
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

/*
 * The same the other way round: what nobody wrote is not reported, however
 * often the layout changes.  The guest writes to every third page.
 */
TEST_F(dirty, nothing_is_invented)
{
	const struct memslot_entry split[] = { logged(&self->vm, 3, 0, 15, 0),
					       logged(&self->vm, 1, 15, 17, 15),
					       logged(&self->vm, 2, 32, 16, 32) };
	const struct memslot_entry whole[] = { logged(&self->vm, 1, 0, 48, 0), absent(2),
					       absent(3) };
	__u64 written = 0;
	unsigned int page;

	ASSERT_TRUE(given_a_logged_slot(self));
	for (page = 0; page < 48; page += 3) {
		ASSERT_TRUE(guest_writes(self, PAGE_BIT(page)));
		written |= PAGE_BIT(page);
		ASSERT_TRUE(apply(self, split, 3));
		ASSERT_TRUE(apply(self, whole, 3));
	}
	ASSERT_TRUE(log_is(self, 1, written));
}

/* ---- The last dirty bitmap, handed back by the commit ---- */

static struct memslot_entry handing_back(struct memslot_entry entry, void *buffer, __u64 bytes)
{
	entry.dirty_bitmap = (unsigned long)buffer;
	entry.dirty_bitmap_size = bytes;
	return entry;
}

/* A logged slot of 48 pages, of which 3 and 40 are written since the log was last read. */
static bool given_two_dirty_pages(FIXTURE_DATA(dirty) *self)
{
	return given_a_logged_slot(self) && guest_writes(self, PAGE_BIT(3) | PAGE_BIT(40));
}

#define TWO_PAGES (PAGE_BIT(3) | PAGE_BIT(40))
#define UNTOUCHED 0x5a5a5a5a5a5a5a5aULL

TEST_F(dirty, handed_back_by_a_delete)
{
	__u64 buffer[3] = { UNTOUCHED, UNTOUCHED, UNTOUCHED };
	const struct memslot_entry gone = handing_back(absent(1), &buffer[1], 8);

	ASSERT_TRUE(given_two_dirty_pages(self));
	ASSERT_TRUE(apply(self, &gone, 1));
	ASSERT_EQ(1, self->reply.grace_periods);
	ASSERT_EQ(UNTOUCHED, buffer[0]);
	ASSERT_EQ(TWO_PAGES, buffer[1]);
	ASSERT_EQ(UNTOUCHED, buffer[2]);
}

/* What was handed back does not turn up again in the slot that comes there. */
TEST_F(dirty, handed_back_after_a_halt)
{
	__u64 bits = UNTOUCHED;
	const struct memslot_entry gone = handing_back(absent(1), &bits, 8);
	const struct memslot_entry next = logged(&self->vm, 2, 0, 48, 64);

	ASSERT_TRUE(given_two_dirty_pages(self));
	ASSERT_TRUE(apply(self, &gone, 1));
	ASSERT_EQ(TWO_PAGES, bits);
	ASSERT_TRUE(apply(self, &next, 1));
	ASSERT_TRUE(log_is(self, 2, self->initially_set ? FIRST_PAGES(48) : 0));
}

TEST_F(dirty, handed_back_by_replace_all)
{
	struct memslot_commit commit = empty_commit(MEMSLOT_COMMIT_REPLACE_ALL);
	__u64 bits = UNTOUCHED;
	struct memslot_entry batch[2];

	ASSERT_TRUE(given_two_dirty_pages(self));
	batch[0] = *model_find(&self->vm, 0, GUEST_SLOT);
	batch[1] = handing_back(absent(1), &bits, 8);
	commit.replace_spaces = 1;
	ASSERT_EQ(0, device_commit_with(self->vm.device, &commit, batch, 2));
	ASSERT_EQ(1, commit.deleted);
	ASSERT_EQ(TWO_PAGES, bits);
}

TEST_F(dirty, handed_back_by_a_replace)
{
	__u64 bits[2] = { UNTOUCHED, UNTOUCHED };
	/* Other memory, then the same memory cut in two: carried and handed back. */
	struct memslot_entry other = handing_back(logged(&self->vm, 1, 0, 48, 64), bits, 16);
	struct memslot_entry cut[] = { handing_back(logged(&self->vm, 1, 0, 16, 64), bits, 8),
				       logged(&self->vm, 2, 16, 32, 80) };
	__u64 log;

	ASSERT_TRUE(given_two_dirty_pages(self));
	ASSERT_TRUE(apply(self, &other, 1));
	ASSERT_EQ(48, self->reply.pages_remapped);
	ASSERT_EQ(TWO_PAGES, bits[0]);
	ASSERT_EQ(UNTOUCHED, bits[1]);
	ASSERT_TRUE(log_is(self, 1, self->initially_set ? FIRST_PAGES(48) : 0));

	ASSERT_TRUE(guest_writes(self, PAGE_BIT(5) | PAGE_BIT(20)));
	ASSERT_TRUE(apply(self, cut, 2));
	ASSERT_EQ(48, self->reply.pages_kept);
	ASSERT_EQ(PAGE_BIT(5) | PAGE_BIT(20), bits[0]);
	ASSERT_EQ(0, get_log(self->vm.fd, 0, 1, &log));
	ASSERT_EQ(PAGE_BIT(5), log);
	ASSERT_EQ(0, get_log(self->vm.fd, 0, 2, &log));
	ASSERT_EQ(PAGE_BIT(4), log);
}

TEST_F(dirty, handed_back_by_a_move)
{
	__u64 bits = UNTOUCHED;
	struct memslot_entry moved = handing_back(logged(&self->vm, 1, 10, 48, 0), &bits, 8);

	ASSERT_TRUE(given_two_dirty_pages(self));
	ASSERT_TRUE(apply(self, &moved, 1));
	ASSERT_EQ(1, self->reply.moved);
	ASSERT_EQ(TWO_PAGES, bits);
	ASSERT_TRUE(log_is(self, 1, TWO_PAGES));
}

TEST_F(dirty, handed_back_when_logging_ends)
{
	__u64 bits = UNTOUCHED;
	struct memslot_entry off = handing_back(vm_region(&self->vm, 1, 0, 48, 0), &bits, 8);

	ASSERT_TRUE(given_two_dirty_pages(self));
	ASSERT_TRUE(apply(self, &off, 1));
	ASSERT_EQ(1, self->reply.reflagged);
	ASSERT_EQ(TWO_PAGES, bits);
}

TEST_F(dirty, handed_back_in_smm_and_for_several)
{
	__u64 bits[2] = { UNTOUCHED, UNTOUCHED };
	const struct memslot_entry smm = in_smm(logged(&self->vm, 1, 0, 48, 0));
	const struct memslot_entry gone[] = { in_smm(handing_back(absent(1), &bits[1], 8)),
					      handing_back(absent(1), &bits[0], 8) };
	__u64 log;

	ASSERT_EQ(0, vm_set_region(&self->vm, &smm));
	ASSERT_EQ(0, harvest(self, 1, 1, &log));
	ASSERT_TRUE(given_two_dirty_pages(self));
	ASSERT_TRUE(vm_store(&self->vm, 1, WINDOW + 7 * PAGE, 2, 1));
	ASSERT_TRUE(apply(self, gone, 2));
	ASSERT_EQ(TWO_PAGES, bits[0]);
	ASSERT_EQ(PAGE_BIT(7) | PAGE_BIT(8), bits[1]);
}

/* A buffer that crosses pages, for a slot of more pages than the window has. */
TEST_F(dirty, handed_back_across_pages)
{
	unsigned char *room = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct memslot_entry entry = {
		.slot = 1,
		.flags = LOG_DIRTY,
		.guest_phys_addr = WINDOW,
		/* one page more than the last but one word is for */
		.memory_size = (64 * 513 + 1) * PAGE,
	};
	__u64 *buffer = (__u64 *)(room + PAGE - 16);
	struct memslot_commit reply;
	unsigned int word;
	void *memory;

	memory = mmap(NULL, entry.memory_size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, memory);
	ASSERT_NE(MAP_FAILED, room);
	memset(room, 0x5a, 3 * PAGE);
	entry.userspace_addr = (unsigned long)memory;
	ASSERT_EQ(0, kvm_set_region(self->vm.fd, &entry));
	if (self->initially_set) {
		/* all words, and the last one's single bit */
		entry = handing_back(absent(1), buffer, 514 * 8);
		ASSERT_EQ(0, device_commit(self->vm.device, 0, &entry, 1, &reply));
		for (word = 0; word < 513; word++)
			ASSERT_EQ(~0ULL, buffer[word]);
		ASSERT_EQ(1, buffer[513]);
	} else {
		ASSERT_TRUE(vm_store(&self->vm, 0, WINDOW + 130 * PAGE, 1, 1));
		ASSERT_TRUE(vm_store(&self->vm, 0, WINDOW + 64 * 513 * PAGE, 1, 1));
		entry = handing_back(absent(1), buffer, 514 * 8);
		ASSERT_EQ(0, device_commit(self->vm.device, 0, &entry, 1, &reply));
		for (word = 0; word < 514; word++)
			ASSERT_EQ(word == 2 ? 4 : word == 513, buffer[word]);
	}
	ASSERT_EQ(UNTOUCHED, buffer[514]);
	ASSERT_EQ(UNTOUCHED, buffer[-1]);
	munmap(memory, (64 * 513 + 1) * PAGE);
	munmap(room, 3 * PAGE);
}

/*
 * Intel's processors log by themselves (PML): 512 pages, and for the next one they leave
 * the guest.  Here they do so while it writes, and with some kernels just 512 pages are
 * left in the buffer when KVM_RUN returns.
 */
TEST_F(dirty, handed_back_of_more_pages_than_a_processor_logs)
{
	enum { PAGES_OF_SLOT = 1344, FIRST = 1000, SECOND_AT = 1100, SECOND = 24 };
	struct memslot_entry entry = {
		.slot = 1,
		.flags = LOG_DIRTY,
		.guest_phys_addr = WINDOW,
		.memory_size = PAGES_OF_SLOT * PAGE,
	};
	__u64 bits[PAGES_OF_SLOT / 64] = {};
	struct kvm_dirty_log get = { .slot = 1, .dirty_bitmap = bits };
	struct kvm_clear_dirty_log clear = {
		.slot = 1, .num_pages = PAGES_OF_SLOT, .dirty_bitmap = bits,
	};
	struct memslot_commit reply;
	unsigned int page;
	void *memory;
	bool written;

	memory = mmap(NULL, entry.memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	ASSERT_NE(MAP_FAILED, memory);
	entry.userspace_addr = (unsigned long)memory;
	ASSERT_EQ(0, kvm_set_region(self->vm.fd, &entry));
	/* The second time, no page is new to KVM: nothing but a full log ends the guest's run. */
	ASSERT_TRUE(vm_store(&self->vm, 0, WINDOW, PAGES_OF_SLOT, 1));
	ASSERT_EQ(0, call_ioctl(self->vm.fd, KVM_GET_DIRTY_LOG, &get));
	if (self->manual)
		ASSERT_EQ(0, call_ioctl(self->vm.fd, KVM_CLEAR_DIRTY_LOG, &clear));
	ASSERT_TRUE(vm_store(&self->vm, 0, WINDOW, FIRST, 2));
	ASSERT_TRUE(vm_store(&self->vm, 0, WINDOW + SECOND_AT * PAGE, SECOND, 2));

	entry = handing_back(absent(1), bits, sizeof(bits));
	ASSERT_EQ(0, device_commit(self->vm.device, 0, &entry, 1, &reply));
	for (page = 0; page < PAGES_OF_SLOT; page++) {
		written = page < FIRST || (page >= SECOND_AT && page < SECOND_AT + SECOND);
		ASSERT_EQ(written, bits[page / 64] >> page % 64 & 1)
			TH_LOG("page %u", page);
	}
	munmap(memory, PAGES_OF_SLOT * PAGE);
}

TEST_F(dirty, not_handed_back_by_test_only)
{
	__u64 bits = UNTOUCHED;
	const struct memslot_entry gone = handing_back(absent(1), &bits, 8);
	struct memslot_commit reply;

	ASSERT_TRUE(given_two_dirty_pages(self));
	ASSERT_EQ(0, device_commit(self->vm.device, MEMSLOT_COMMIT_TEST_ONLY, &gone, 1, &reply));
	ASSERT_EQ(UNTOUCHED, bits);
	ASSERT_TRUE(log_is(self, 1, TWO_PAGES));
}

/* Refused in the same way by a commit and its dry run, and nothing has changed. */
static bool is_refused(FIXTURE_DATA(dirty) *self, const struct memslot_entry *entries,
		       unsigned int count, int err, unsigned int index, __u32 reason)
{
	const __u32 flags[] = { MEMSLOT_COMMIT_TEST_ONLY, 0 };
	__u64 before[2], after[2];
	unsigned int i;
	int got;

	if (!vm_generations(&self->vm, before))
		return false;
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		got = device_commit(self->vm.device, flags[i], entries, count, &self->reply);
		if (got == err && self->reply.failed_index == index &&
		    self->reply.reason == reason &&
		    !memcmp(before, self->reply.generation, sizeof(before)))
			continue;
		fprintf(stderr, "# flags %u: %s, entry %d, reason %u\n", flags[i], strerror(-got),
			(int)self->reply.failed_index, self->reply.reason);
		return false;
	}
	return vm_generations(&self->vm, after) && !memcmp(before, after, sizeof(before));
}

TEST_F(dirty, buffers_that_are_refused)
{
	unsigned char *room = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const struct memslot_entry other = vm_region(&self->vm, 2, 50, 4, 0);
	const struct memslot_entry today = logged(&self->vm, 1, 0, 48, 0);
	struct memslot_entry batch[2];

	ASSERT_NE(MAP_FAILED, room);
	ASSERT_EQ(0, mprotect(room + PAGE, PAGE, PROT_READ));
	ASSERT_TRUE(given_two_dirty_pages(self));
	ASSERT_EQ(0, vm_set_region(&self->vm, &other));
	batch[0] = vm_region(&self->vm, 3, 60, 2, 0);

	batch[1] = handing_back(absent(1), room + 4, 8);
	ASSERT_TRUE(is_refused(self, batch, 2, -EINVAL, 1, MEMSLOT_REASON_BITMAP_ALIGN));
	batch[1] = handing_back(absent(1), room, 12);
	ASSERT_TRUE(is_refused(self, batch, 2, -EINVAL, 1, MEMSLOT_REASON_BITMAP_SIZE));
	batch[1] = handing_back(absent(1), room, 0);
	ASSERT_TRUE(is_refused(self, batch, 2, -EINVAL, 1, MEMSLOT_REASON_BITMAP_SIZE));
	batch[1] = handing_back(absent(1), NULL, 8);
	ASSERT_TRUE(is_refused(self, batch, 2, -EINVAL, 1, MEMSLOT_REASON_BITMAP_SIZE));
	batch[1] = handing_back(absent(1), room, (64 << 20) + 8);
	ASSERT_TRUE(is_refused(self, batch, 2, -E2BIG, 1, MEMSLOT_REASON_BITMAP_SIZE));
	/* read-only, beyond the end, not mapped, the kernel's */
	batch[1] = handing_back(absent(1), room + PAGE, 8);
	ASSERT_TRUE(is_refused(self, batch, 2, -EFAULT, 1, MEMSLOT_REASON_BITMAP_UNWRITABLE));
	batch[1] = handing_back(absent(1), room + PAGE - 8, 16);
	ASSERT_TRUE(is_refused(self, batch, 2, -EFAULT, 1, MEMSLOT_REASON_BITMAP_UNWRITABLE));
	batch[1] = handing_back(absent(1), (void *)8, 8);
	ASSERT_TRUE(is_refused(self, batch, 2, -EFAULT, 1, MEMSLOT_REASON_BITMAP_UNWRITABLE));
	batch[1] = handing_back(absent(1), (void *)0xffff888000000000, 8);
	ASSERT_TRUE(is_refused(self, batch, 2, -EFAULT, 1, MEMSLOT_REASON_BITMAP_UNWRITABLE));
	batch[1] = handing_back(absent(1), (void *)-8, 8);
	ASSERT_TRUE(is_refused(self, batch, 2, -EFAULT, 1, MEMSLOT_REASON_BITMAP_UNWRITABLE));
	/* no log, not yet a log, no slot yet, nothing changes */
	batch[1] = handing_back(absent(2), room, 8);
	ASSERT_TRUE(is_refused(self, batch, 2, -EINVAL, 1, MEMSLOT_REASON_NO_DIRTY_LOG));
	batch[1] = handing_back(with_flags(other, LOG_DIRTY), room, 8);
	ASSERT_TRUE(is_refused(self, batch, 2, -EINVAL, 1, MEMSLOT_REASON_NO_DIRTY_LOG));
	batch[1] = handing_back(logged(&self->vm, 4, 56, 2, 0), room, 8);
	ASSERT_TRUE(is_refused(self, batch, 2, -EINVAL, 1, MEMSLOT_REASON_NO_DIRTY_LOG));
	batch[1] = handing_back(today, room, 8);
	ASSERT_TRUE(is_refused(self, batch, 2, -EINVAL, 1, MEMSLOT_REASON_NO_DIRTY_LOG));

	ASSERT_TRUE(log_is(self, 1, TWO_PAGES));
	/* A slot of 65 pages needs two words. */
	batch[0] = logged(&self->vm, 1, 0, 48, 0);
	batch[0].memory_size = 65 * PAGE;
	batch[1] = absent(2);
	ASSERT_EQ(0, device_commit(self->vm.device, 0, batch, 2, &self->reply));
	batch[0] = handing_back(absent(1), room, 8);
	ASSERT_TRUE(is_refused(self, batch, 1, -EINVAL, 0, MEMSLOT_REASON_BITMAP_SIZE));
	batch[0] = handing_back(absent(1), room, 16);
	ASSERT_EQ(0, device_commit(self->vm.device, 0, batch, 1, &self->reply));
	munmap(room, 2 * PAGE);
}

/* Who would provide the page may be who commits, and must not wait for itself. */
TEST_F(dirty, buffer_whose_page_is_to_come)
{
	unsigned char *page;
	const int uffd = page_to_come(&page);
	struct uffdio_zeropage zero = { .range = { .start = (unsigned long)page, .len = PAGE } };
	const struct memslot_entry gone = handing_back(absent(1), page, 8);

	ASSERT_LE(0, uffd);
	ASSERT_TRUE(given_two_dirty_pages(self));
	ASSERT_TRUE(is_refused(self, &gone, 1, -EFAULT, 0, MEMSLOT_REASON_BITMAP_UNWRITABLE));
	ASSERT_EQ(0, call_ioctl(uffd, UFFDIO_ZEROPAGE, &zero));
	ASSERT_TRUE(apply(self, &gone, 1));
	ASSERT_EQ(TWO_PAGES, *(__u64 *)page);
	munmap(page, PAGE);
	close(uffd);
}

struct unprivileged {
	FIXTURE_DATA(dirty) *self;
	void *buffer;
	bool refused;
	bool given_back;
};

/* Without CAP_IPC_LOCK, which is a thread's own. */
static void *commit_unprivileged(void *argument)
{
	const struct rlimit two_pages = { 2 * PAGE, 2 * PAGE };
	struct unprivileged *u = argument;
	unsigned int i;
	const struct memslot_entry gone = handing_back(absent(1), u->buffer, 8);

	if (syscall(SYS_setresuid, 65534, 65534, 65534))
		return NULL;
	u->refused = is_refused(u->self, &gone, 1, -ENOMEM, MEMSLOT_NO_ENTRY,
				MEMSLOT_REASON_BITMAP_LOCKED);
	if (setrlimit(RLIMIT_MEMLOCK, &two_pages))
		return NULL;
	/* More than the limit together, so it is given back each time. */
	for (i = 0; i < 8; i++)
		if (device_commit(u->self->vm.device, MEMSLOT_COMMIT_TEST_ONLY, &gone, 1,
				  &u->self->reply))
			return NULL;
	u->given_back = true;
	return NULL;
}

TEST_F(dirty, buffers_count_as_locked_memory)
{
	const struct rlimit none = { 0, 2 * PAGE };
	__u64 bits = UNTOUCHED;
	struct unprivileged u = { .self = self, .buffer = &bits };
	const struct memslot_entry gone = handing_back(absent(1), &bits, 8);
	pthread_t thread;

	ASSERT_TRUE(given_two_dirty_pages(self));
	ASSERT_EQ(0, setrlimit(RLIMIT_MEMLOCK, &none));
	ASSERT_EQ(0, pthread_create(&thread, NULL, commit_unprivileged, &u));
	pthread_join(thread, NULL);
	ASSERT_TRUE(u.refused);
	ASSERT_TRUE(u.given_back);
	ASSERT_TRUE(apply(self, &gone, 1));
	ASSERT_EQ(TWO_PAGES, bits);
}

/*
 * A vCPU writes to all pages all the time, and its memory is replaced under it.
 * Each page of the memory that went away that was written since the bitmap
 * before must be in the last one; and once the commit has returned no page of
 * it changes any more.
 */
TEST_F(dirty, handed_back_complete_while_a_vcpu_writes)
{
	__u32 before[2][48] = {}, after[48], later[48];
	struct spinner spinner;
	unsigned int round, page, changed = 0;

	const struct memslot_entry start = logged(&self->vm, 1, 0, 48, 0);

	ASSERT_EQ(0, vm_set_region(&self->vm, &start));
	ASSERT_TRUE(spinner_start(&spinner, &self->vm, 0, guest_count, WINDOW, 48));
	for (round = 0; round < 40; round++) {
		const unsigned int old = round % 2 * 64, new = 64 - old;
		__u64 bits = UNTOUCHED;
		const struct memslot_entry next =
			handing_back(logged(&self->vm, 1, 0, 48, new), &bits, 8);

		ASSERT_EQ(0, device_commit(self->vm.device,
					   round % 4 == 3 ? MEMSLOT_COMMIT_PARK : 0, &next, 1,
					   &self->reply));
		ASSERT_EQ(1, self->reply.grace_periods);
		model_apply(&self->vm, &next, 1);
		for (page = 0; page < 48; page++)
			after[page] = *(__u32 *)(self->vm.pool + (old + page) * PAGE + 8);
		ASSERT_TRUE(spinner_progresses(&spinner, 1));
		for (page = 0; page < 48; page++) {
			later[page] = *(__u32 *)(self->vm.pool + (old + page) * PAGE + 8);
			ASSERT_EQ(after[page], later[page]) TH_LOG("page %u", page);
			if (after[page] == before[old / 64][page])
				continue;
			changed++;
			ASSERT_TRUE(bits & PAGE_BIT(page)) TH_LOG("round %u page %u", round, page);
		}
		memcpy(before[old / 64], after, sizeof(after));
	}
	ASSERT_TRUE(spinner_stop(&spinner));
	ASSERT_LT(40, changed);
}

/*
 * ---- Two vCPUs write to more pages than a processor logs, each page once, while a commit
 * takes the log: what they wrote can be told from the memory, page by page. ----
 */

#define MANY 4096U
#define WRITERS 2

struct writer {
	struct vm *vm;
	unsigned int vcpu;
	__u64 gpa;
	__u32 value;
	pthread_t thread;
	bool done;
};

static void *write_many(void *argument)
{
	struct writer *w = argument;

	w->done = vm_store_slowly(w->vm, w->vcpu, w->gpa, MANY / WRITERS, w->value);
	return NULL;
}

/* What the guest wrote last to a page */
static __u32 written_to(const unsigned char *memory, unsigned int page)
{
	return __atomic_load_n((const __u32 *)(memory + page * PAGE + 8), __ATOMIC_SEQ_CST);
}

/* Returns when both have written @pages pages, and go on. */
static bool writers_start(struct writer writers[WRITERS], struct vm *vm, __u64 gpa, __u32 value,
			  const unsigned char *memory, unsigned int pages)
{
	const double deadline = seconds() + patience();
	unsigned int i;

	for (i = 0; i < WRITERS; i++) {
		writers[i] = (struct writer){
			.vm = vm,
			.vcpu = 2 * i, /* the odd ones are in SMM */
			.gpa = gpa + i * MANY / WRITERS * PAGE,
			.value = value,
		};
		if (pthread_create(&writers[i].thread, NULL, write_many, &writers[i]))
			return false;
	}
	for (i = 0; i < WRITERS; i++)
		while (written_to(memory, i * MANY / WRITERS + pages - 1) != value)
			if (seconds() > deadline)
				return false;
	return true;
}

static bool writers_end(struct writer writers[WRITERS])
{
	bool done = true;
	unsigned int i;

	for (i = 0; i < WRITERS; i++) {
		pthread_join(writers[i].thread, NULL);
		done &= writers[i].done;
	}
	return done;
}

static struct memslot_entry many_pages(unsigned char *memory, unsigned int at)
{
	return (struct memslot_entry){
		.slot = 1,
		.flags = LOG_DIRTY,
		.guest_phys_addr = WINDOW + at * PAGE,
		.memory_size = MANY * PAGE,
		.userspace_addr = (unsigned long)memory,
	};
}

/* Adds the log of slot 1 to @log, and starts a new one. */
static int harvest_many(FIXTURE_DATA(dirty) *self, __u64 log[MANY / 64])
{
	__u64 bits[MANY / 64] = {};
	struct kvm_dirty_log get = { .slot = 1, .dirty_bitmap = bits };
	struct kvm_clear_dirty_log clear = {
		.slot = 1, .num_pages = MANY, .dirty_bitmap = bits,
	};
	unsigned int i;
	int err;

	err = call_ioctl(self->vm.fd, KVM_GET_DIRTY_LOG, &get);
	if (!err && self->manual)
		err = call_ioctl(self->vm.fd, KVM_CLEAR_DIRTY_LOG, &clear);
	for (i = 0; i < MANY / 64; i++)
		log[i] |= bits[i];
	return err;
}

/* All pages are mapped and none is marked: what marks them from here is the processor. */
static bool given_an_empty_log(FIXTURE_DATA(dirty) *self, unsigned int at)
{
	__u64 log[MANY / 64];

	return vm_store(&self->vm, 0, WINDOW + at * PAGE, MANY, 0) && settle(&self->vm) &&
	       !harvest_many(self, log);
}

/* Returns how many pages have @value; all of them must be in @log.  Else -1. */
static int written_and_logged(const unsigned char *memory, __u32 value, const __u64 *log)
{
	unsigned int page;
	int written = 0;

	for (page = 0; page < MANY; page++) {
		if (written_to(memory, page) != value)
			continue;
		written++;
		if (log[page / 64] & PAGE_BIT(page % 64))
			continue;
		fprintf(stderr, "# page %u, %u, is missing\n", page, value);
		return -1;
	}
	return written;
}

static unsigned char *memory_of_many(void)
{
	void *memory = mmap(NULL, MANY * PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

TEST_F(dirty, handed_back_while_vcpus_write_many_pages)
{
	unsigned char *memory[2] = { memory_of_many(), memory_of_many() };
	struct memslot_entry next = many_pages(memory[0], 0);
	struct writer writers[WRITERS];
	unsigned int round, cut = 0;
	struct memslot_commit reply;
	int before, after;

	ASSERT_TRUE(memory[0] && memory[1]);
	ASSERT_TRUE(vm_create_vcpus(&self->vm, 1));
	ASSERT_EQ(0, kvm_set_region(self->vm.fd, &next));
	for (round = 1; round <= 4; round++) {
		unsigned char *old = memory[round % 2 ^ 1], *new = memory[round % 2];
		__u64 bits[MANY / 64] = {}, log[MANY / 64] = {};

		ASSERT_TRUE(given_an_empty_log(self, 0));
		ASSERT_TRUE(writers_start(writers, &self->vm, WINDOW, round, old, 400 * round));
		next = handing_back(many_pages(new, 0), bits, sizeof(bits));
		ASSERT_EQ(0, device_commit(self->vm.device, 0, &next, 1, &reply));
		ASSERT_TRUE(writers_end(writers));
		ASSERT_EQ(0, self->vm.mmio_writes);
		ASSERT_TRUE(settle(&self->vm));
		ASSERT_EQ(0, harvest_many(self, log));
		before = written_and_logged(old, round, bits);
		after = written_and_logged(new, round, log);
		ASSERT_LE(0, before);
		ASSERT_LE(0, after);
		ASSERT_LE(MANY, before + after);
		cut += before && after;
	}
	/* The commit did come in between. */
	ASSERT_LT(0, cut);
	munmap(memory[0], MANY * PAGE);
	munmap(memory[1], MANY * PAGE);
}

/* What they write where the slot was no longer is, is lost, as with KVM's own move. */
TEST_F(dirty, moved_while_vcpus_write_many_pages)
{
	unsigned char *memory = memory_of_many();
	struct memslot_entry next = many_pages(memory, MANY);
	struct writer writers[WRITERS];
	unsigned int round, cut = 0;
	struct memslot_commit reply;
	int written;

	ASSERT_TRUE(memory);
	ASSERT_TRUE(vm_create_vcpus(&self->vm, 1));
	ASSERT_EQ(0, kvm_set_region(self->vm.fd, &next));
	for (round = 1; round <= 4; round++) {
		const unsigned int old = round % 2 * MANY, new = MANY - old;
		__u64 log[MANY / 64] = {};

		ASSERT_TRUE(given_an_empty_log(self, old));
		ASSERT_TRUE(writers_start(writers, &self->vm, WINDOW + old * PAGE, round, memory,
					  400 * round));
		/* KVM's own call in between takes what is marked by then. */
		if (round % 2)
			ASSERT_EQ(0, harvest_many(self, log));
		next = many_pages(memory, new);
		ASSERT_EQ(0, device_commit(self->vm.device, 0, &next, 1, &reply));
		ASSERT_EQ(1, reply.moved);
		ASSERT_EQ(MEMSLOT_PARK_DIRTY_LOG, reply.park_cause);
		/* As long as they go on, nothing that they write gets there. */
		ASSERT_EQ(0, harvest_many(self, log));
		ASSERT_TRUE(writers_end(writers));
		written = written_and_logged(memory, round, log);
		ASSERT_LE(400 * WRITERS * round, written);
		cut += written < MANY;
	}
	ASSERT_LT(0, cut);
	munmap(memory, MANY * PAGE);
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
	if (!settle(vm))
		return -EIO;
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
	const struct memslot_entry moved[] = { logged(&vm, 3, 16, 48, 0) };
	__u64 bits;
	const struct memslot_entry gone = handing_back(absent(1), &bits, 8);

	ASSERT_TRUE(try_commit(&vm, whole, 1, &reply));
	ASSERT_TRUE(vm_store(&vm, 0, WINDOW, 48, 1));
	ASSERT_EQ(0, reap(&vm, &ring, logs));
	ASSERT_EQ(FIRST_PAGES(48), logs[0]);
	ASSERT_EQ(0, logs[1] | logs[2]);

	/* There is no bitmap to hand back. */
	ASSERT_EQ(-EOPNOTSUPP, device_commit(vm.device, 0, &gone, 1, &reply));
	ASSERT_EQ(MEMSLOT_REASON_DIRTY_RING, reply.reason);
	ASSERT_EQ(0, reply.failed_index);

	/* These stay writable; after the split they must be reported by their new names. */
	ASSERT_TRUE(vm_store(&vm, 0, WINDOW, 24, 2));
	ASSERT_TRUE(settle(&vm));
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
	ASSERT_TRUE(settle(&vm));
	ASSERT_TRUE(try_commit(&vm, merged, 3, &reply));
	ASSERT_TRUE(vm_store(&vm, 0, WINDOW + 5 * PAGE, 30, 5));
	ASSERT_EQ(0, reap(&vm, &ring, logs));
	ASSERT_EQ(FIRST_PAGES(30) << 5 | FIRST_PAGES(4) << 10, logs[2]);
	ASSERT_EQ(0, logs[0] | logs[1]);

	/* Whatever the vCPU keeps to itself is in the ring before its gfns lose their slot. */
	ASSERT_TRUE(vm_store(&vm, 0, WINDOW + 8 * PAGE, 2, 6));
	ASSERT_TRUE(try_commit(&vm, moved, 1, &reply));
	ASSERT_EQ(0, reap(&vm, &ring, logs));
	ASSERT_EQ(FIRST_PAGES(2) << 8, logs[2]);
	munmap(ring.gfns, capability.args[0]);
	vm_destroy(&vm);
}
