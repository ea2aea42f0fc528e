// SPDX-License-Identifier: GPL-2.0
/*
 * Fails the first, the second, ... allocation or user copy of an ioctl, until
 * there is none left to fail.  Where the ioctl says that it failed, everything
 * is as it was; where it says that it succeeded, it has done all.
 */
#include <fcntl.h>

#include "harness.h"

#define PAGES 48
#define MOST_SLOTS 16
#define SPINNER_PAGE 0x8000 /* of the guest's own memory: what the vCPU that runs counts in */
#define SPINNER 2
#define MOST_FAILURES 2000 /* more than any ioctl here can meet */
#define DIRTY_PAGES 0x22ULL /* of slot 1, which the guest writes to */
#define BITMAP_POISON 0xa5a5a5a5a5a5a5a5ULL
#define ALL_SPACES 3
#define FAIL_NTH "/proc/thread-self/fail-nth"
#define LOG_DIRTY MEMSLOT_ENTRY_LOG_DIRTY_PAGES

enum operation { OPEN, INFO, BIND, STAGE, COMMIT, RESET, QUERY };
enum batch { COVERS, UNCOVERS, SHRINKS, HANDS_BACK, NAMES_ALL };

/* What MEMSLOT_IOC_QUERY says of an address space */
struct space {
	struct memslot_entry slots[MOST_SLOTS];
	__u32 count;
	__u64 generation;
};

FIXTURE(fail_nth) {
	struct vm vm;
	struct vm today; /* the model of the layout that each attempt starts from */
	struct spinner spinner;
	int fail_nth;
	int opened; /* by OPEN; and by BIND, which needs a file that is not bound */
	__u64 bitmap;
	struct memslot_entry batch[MOST_SLOTS];
	unsigned int count; /* of the batch */
	unsigned int staged; /* so many of them are staged before */
	struct space before[MEMSLOT_MAX_ADDRESS_SPACES];
	long locked;
};

FIXTURE_VARIANT(fail_nth) {
	enum operation operation;
	enum batch batch;
	__u32 flags; /* of COMMIT */
	unsigned int staged;
	unsigned int least; /* so many failures make the ioctl fail, at least */
};

#define VARIANT(name, ...) FIXTURE_VARIANT_ADD(fail_nth, name) { __VA_ARGS__ }

VARIANT(open, .operation = OPEN, .least = 2);
VARIANT(info, .operation = INFO, .least = 2);
VARIANT(bind, .operation = BIND, .least = 1);
VARIANT(stage, .operation = STAGE, .batch = COVERS, .least = 1);
VARIANT(commit_fenced, .operation = COMMIT, .batch = COVERS, .least = 10);
VARIANT(commit_staged, .operation = COMMIT, .batch = COVERS, .staged = 3, .least = 10);
VARIANT(commit_parked, .operation = COMMIT, .batch = COVERS, .flags = MEMSLOT_COMMIT_PARK,
	.least = 12);
VARIANT(commit_uncovers, .operation = COMMIT, .batch = UNCOVERS, .least = 6);
VARIANT(commit_shrinks, .operation = COMMIT, .batch = SHRINKS, .least = 10);
VARIANT(commit_hands_back, .operation = COMMIT, .batch = HANDS_BACK, .least = 10);
VARIANT(commit_test_only, .operation = COMMIT, .batch = COVERS,
	.flags = MEMSLOT_COMMIT_TEST_ONLY, .least = 10);
VARIANT(commit_replace_all, .operation = COMMIT, .batch = NAMES_ALL,
	.flags = MEMSLOT_COMMIT_REPLACE_ALL, .least = 10);
VARIANT(reset, .operation = RESET, .batch = COVERS, .staged = 3, .least = 1);
VARIANT(query, .operation = QUERY, .least = 3);

static bool write_word(const char *path, const char *word)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, word, strlen(word)) == (ssize_t)strlen(word);

	if (!ok)
		fprintf(stderr, "# %s: %s\n", path, strerror(errno));
	close(fd);
	return ok;
}

/* By default what may wait for memory never fails, and each failure is told at length. */
static bool allow_failures(void)
{
	return write_word("/sys/kernel/debug/failslab/ignore-gfp-wait", "N") &&
	       write_word("/sys/kernel/debug/failslab/verbose", "0") &&
	       write_word("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N") &&
	       write_word("/sys/kernel/debug/fail_page_alloc/min-order", "0") &&
	       write_word("/sys/kernel/debug/fail_page_alloc/verbose", "0") &&
	       write_word("/sys/kernel/debug/fail_usercopy/verbose", "0");
}

static bool arm(int fd, unsigned int n)
{
	char word[16];
	int length = snprintf(word, sizeof(word), "%u", n);

	return write(fd, word, length) == length;
}

/* Nothing fails any more.  Did something, since arm()? */
static bool disarm(int fd)
{
	char word[16] = "";
	/* If one more was to come, then it is the copy of this very read that fails. */
	ssize_t length = pread(fd, word, sizeof(word) - 1, 0);

	/* And if one more than that, that of this write. */
	if (!arm(fd, 0) && !arm(fd, 0)) {
		fprintf(stderr, "# %s cannot be switched off: %s\n", FAIL_NTH, strerror(errno));
		abort();
	}
	return length > 0 && atoi(word) == 0;
}

static long locked_memory(void)
{
	FILE *file = fopen("/proc/self/status", "re");
	char line[128];
	long locked = -1;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "VmLck: %ld", &locked) == 1)
			break;
	if (file)
		fclose(file);
	return locked;
}

static bool look(FIXTURE_DATA(fail_nth) *self, struct space spaces[MEMSLOT_MAX_ADDRESS_SPACES])
{
	unsigned int as;

	for (as = 0; as < MEMSLOT_MAX_ADDRESS_SPACES; as++) {
		struct memslot_query reply;
		int err = device_query(self->vm.device, as, spaces[as].slots, MOST_SLOTS, &reply);

		if (err) {
			fprintf(stderr, "# query: %s\n", strerror(-err));
			return false;
		}
		spaces[as].count = reply.count;
		spaces[as].generation = reply.generation;
	}
	return true;
}

static int by_address(const void *a, const void *b)
{
	const struct memslot_entry *x = a, *y = b;

	return x->guest_phys_addr < y->guest_phys_addr ? -1 :
							 x->guest_phys_addr > y->guest_phys_addr;
}

/* What QUERY must say, by the model; the generations are the caller's business. */
static void describe_model(const struct vm *vm, struct space spaces[MEMSLOT_MAX_ADDRESS_SPACES])
{
	unsigned int as, i;

	for (as = 0; as < MEMSLOT_MAX_ADDRESS_SPACES; as++) {
		spaces[as].count = 0;
		memset(spaces[as].slots, 0xa5, sizeof(spaces[as].slots));
		for (i = 0; i < vm->nr_slots; i++) {
			struct memslot_entry *slot = &spaces[as].slots[spaces[as].count];

			if (vm->slots[i].address_space != as)
				continue;
			*slot = vm->slots[i];
			slot->dirty_bitmap = 0;
			slot->dirty_bitmap_size = 0;
			spaces[as].count++;
		}
		qsort(spaces[as].slots, spaces[as].count, sizeof(spaces[as].slots[0]),
		      by_address);
	}
}

static bool same_slots(const struct space *a, const struct space *b)
{
	return a->count == b->count &&
	       !memcmp(a->slots, b->slots, a->count * sizeof(a->slots[0]));
}

/* Is the layout, for QUERY and for the guest, what the model says? */
static bool layout_is_the_models(FIXTURE_DATA(fail_nth) *self)
{
	struct space now[MEMSLOT_MAX_ADDRESS_SPACES], expected[MEMSLOT_MAX_ADDRESS_SPACES];
	unsigned int as;

	describe_model(&self->vm, expected);
	if (!look(self, now))
		return false;
	for (as = 0; as < MEMSLOT_MAX_ADDRESS_SPACES; as++) {
		if (!same_slots(&now[as], &expected[as])) {
			fprintf(stderr, "# address space %u has not the slots it should\n", as);
			return false;
		}
	}
	return vm_check(&self->vm);
}

/* Has nothing happened since before was filled in? */
static bool nothing_changed(FIXTURE_DATA(fail_nth) *self)
{
	struct space now[MEMSLOT_MAX_ADDRESS_SPACES];
	unsigned int as;

	if (!look(self, now))
		return false;
	for (as = 0; as < MEMSLOT_MAX_ADDRESS_SPACES; as++) {
		if (now[as].generation != self->before[as].generation) {
			fprintf(stderr, "# address space %u: generation %llu, not %llu\n", as,
				now[as].generation, self->before[as].generation);
			return false;
		}
	}
	if (self->bitmap != BITMAP_POISON) {
		fprintf(stderr, "# a commit that failed wrote the dirty bitmap\n");
		return false;
	}
	return layout_is_the_models(self);
}

/* So many entries are staged, and they are the batch's first. */
static bool staged_are(FIXTURE_DATA(fail_nth) *self, unsigned int count)
{
	struct expectation expectation;
	struct memslot_commit reply;
	int err;

	model_expect(&self->vm, self->batch, count, &expectation);
	err = device_commit(self->vm.device, MEMSLOT_COMMIT_TEST_ONLY, NULL, 0, &reply);
	if (err) {
		fprintf(stderr, "# what is staged cannot be committed: %s\n", strerror(-err));
		return false;
	}
	return reply_matches(&reply, &expectation);
}

static int commit(FIXTURE_DATA(fail_nth) *self, __u32 flags, const struct memslot_entry *entries,
		  unsigned int count)
{
	struct memslot_commit argument = empty_commit(flags);

	if (flags & MEMSLOT_COMMIT_REPLACE_ALL)
		argument.replace_spaces = ALL_SPACES;
	return device_commit_with(self->vm.device, &argument, entries, count);
}

static struct memslot_entry hands_back(struct memslot_entry entry, __u64 *bitmap)
{
	entry.dirty_bitmap = (unsigned long)bitmap;
	entry.dirty_bitmap_size = sizeof(*bitmap);
	return entry;
}

static void make_batch(FIXTURE_DATA(fail_nth) *self, enum batch batch)
{
	const struct vm *vm = &self->vm;
	struct memslot_entry *entry = self->batch;
	unsigned int i;

	switch (batch) {
	case COVERS: /* one of each: replace, create, reflag, move; and in SMM */
		*entry++ = with_flags(vm_region(vm, 1, 0, 4, 0), LOG_DIRTY);
		*entry++ = with_flags(vm_region(vm, 5, 4, 4, 4), LOG_DIRTY);
		*entry++ = vm_region(vm, 2, 8, 8, 40);
		*entry++ = vm_region(vm, 3, 16, 4, 16);
		*entry++ = vm_region(vm, 4, 20, 4, 24);
		*entry++ = vm_region(vm, 6, 24, 4, 48);
		*entry++ = in_smm(vm_region(vm, 1, 0, 8, 8));
		break;
	case UNCOVERS:
		*entry++ = absent(2);
		*entry++ = vm_region(vm, 4, 28, 4, 24);
		*entry++ = in_smm(absent(1));
		break;
	case SHRINKS: /* the middle of a slot goes, and the end of another */
		*entry++ = with_flags(vm_region(vm, 1, 0, 2, 0), LOG_DIRTY);
		*entry++ = with_flags(vm_region(vm, 5, 6, 2, 6), LOG_DIRTY);
		*entry++ = in_smm(vm_region(vm, 1, 0, 4, 0));
		break;
	case HANDS_BACK:
		*entry++ = hands_back(with_flags(vm_region(vm, 1, 0, 4, 0), LOG_DIRTY),
				      &self->bitmap);
		*entry++ = with_flags(vm_region(vm, 5, 4, 4, 4), LOG_DIRTY);
		break;
	case NAMES_ALL: /* slots 1 and 2 stay, 3 and 4 go */
		for (i = 0; i < vm->nr_slots; i++)
			if (vm->slots[i].slot == GUEST_SLOT)
				*entry++ = vm->slots[i];
		*entry++ = with_flags(vm_region(vm, 1, 0, 8, 0), LOG_DIRTY);
		*entry++ = vm_region(vm, 2, 8, 8, 8);
		*entry++ = vm_region(vm, 7, 30, 2, 32);
		break;
	}
	self->count = entry - self->batch;
}

/* What the model becomes by the batch. */
static void apply_to_model(FIXTURE_DATA(fail_nth) *self, __u32 flags)
{
	struct vm *vm = &self->vm;

	if (flags & MEMSLOT_COMMIT_REPLACE_ALL)
		vm->nr_slots = 0;
	model_apply(vm, self->batch, self->count);
}

/* Back to the layout that each attempt starts from. */
static bool restore(FIXTURE_DATA(fail_nth) *self)
{
	int err = device_reset(self->vm.device);

	if (!err)
		err = commit(self, MEMSLOT_COMMIT_REPLACE_ALL, self->today.slots,
			     self->today.nr_slots);
	if (err) {
		fprintf(stderr, "# the commit after an attempt: %s\n", strerror(-err));
		return false;
	}
	memcpy(self->vm.slots, self->today.slots, sizeof(self->vm.slots));
	self->vm.nr_slots = self->today.nr_slots;
	return true;
}

static bool prepare(FIXTURE_DATA(fail_nth) *self, const FIXTURE_VARIANT(fail_nth) *variant)
{
	struct memslot_stage reply;
	unsigned int page;

	if (!restore(self) ||
	    (variant->staged &&
	     device_stage(self->vm.device, self->batch, variant->staged, &reply)))
		return false;
	for (page = 0; page < 8; page++)
		if (DIRTY_PAGES & 1ULL << page &&
		    !vm_store(&self->vm, 0, WINDOW + page * PAGE, 1, 1))
			return false;
	self->bitmap = BITMAP_POISON;
	self->locked = locked_memory();
	if (variant->operation == BIND)
		self->opened = device_open();
	return look(self, self->before);
}

static int attempt(FIXTURE_DATA(fail_nth) *self, const FIXTURE_VARIANT(fail_nth) *variant)
{
	struct memslot_info info = { .size = sizeof(info) };
	struct space space;
	union {
		struct memslot_bind bind;
		struct memslot_stage stage;
		struct memslot_query query;
	} reply;

	switch (variant->operation) {
	case OPEN:
		self->opened = device_open();
		return self->opened < 0 ? self->opened : 0;
	case INFO:
		return call_ioctl(self->vm.device, MEMSLOT_IOC_INFO, &info);
	case BIND:
		return device_bind(self->opened, self->vm.fd, &reply.bind);
	case STAGE:
		return device_stage(self->vm.device, self->batch, self->count, &reply.stage);
	case COMMIT:
		return commit(self, variant->flags, self->batch + variant->staged,
			      self->count - variant->staged);
	case RESET:
		return device_reset(self->vm.device);
	case QUERY:
		return device_query(self->vm.device, 0, space.slots, MOST_SLOTS, &reply.query);
	}
	return -ENOTTY;
}

/* After an attempt that failed. */
static bool left_no_trace(FIXTURE_DATA(fail_nth) *self, const FIXTURE_VARIANT(fail_nth) *variant)
{
	if (variant->operation == BIND) {
		struct memslot_commit reply;

		if (device_commit(self->opened, 0, NULL, 0, &reply) != -ENOTCONN) {
			fprintf(stderr, "# a bind that failed has bound the file\n");
			return false;
		}
	}
	return nothing_changed(self) && staged_are(self, variant->staged);
}

/* After an attempt that succeeded. */
static bool did_all(FIXTURE_DATA(fail_nth) *self, const FIXTURE_VARIANT(fail_nth) *variant)
{
	struct space now[MEMSLOT_MAX_ADDRESS_SPACES];
	struct memslot_commit reply;

	switch (variant->operation) {
	case OPEN:
		return !close(self->opened) && nothing_changed(self);
	case INFO:
	case QUERY:
		return nothing_changed(self);
	case BIND:
		return !device_commit(self->opened, 0, NULL, 0, &reply) && !close(self->opened) &&
		       nothing_changed(self);
	case STAGE:
		return nothing_changed(self) && staged_are(self, self->count);
	case RESET:
		return nothing_changed(self) && staged_are(self, 0);
	case COMMIT:
		break;
	}

	if (variant->flags & MEMSLOT_COMMIT_TEST_ONLY)
		return nothing_changed(self) && staged_are(self, variant->staged);
	apply_to_model(self, variant->flags);
	if (!layout_is_the_models(self) || !staged_are(self, 0) || !look(self, now))
		return false;
	if (now[0].generation == self->before[0].generation) {
		fprintf(stderr, "# the layout is another one, its generation is not\n");
		return false;
	}
	/* That the guest reads a page may count as a write, too. */
	if (variant->batch == HANDS_BACK &&
	    ((self->bitmap & DIRTY_PAGES) != DIRTY_PAGES || self->bitmap >> 8)) {
		fprintf(stderr, "# the last dirty bitmap is 0x%llx\n", self->bitmap);
		return false;
	}
	return true;
}

FIXTURE_SETUP(fail_nth)
{
	struct memslot_entry today[5];
	unsigned int i;

	self->fail_nth = open(FAIL_NTH, O_RDWR | O_CLOEXEC);
	if (self->fail_nth < 0)
		return; /* the test says so: the harness of 6.1 runs it after a SKIP here */
	ASSERT_TRUE(allow_failures());

	ASSERT_TRUE(vm_create(&self->vm, SPINNER + 1, 64, POOL_SMALL_PAGES));
	self->vm.window_pages = PAGES;
	ASSERT_TRUE(vm_bind(&self->vm));
	today[0] = with_flags(vm_region(&self->vm, 1, 0, 8, 0), LOG_DIRTY);
	today[1] = vm_region(&self->vm, 2, 8, 8, 8);
	today[2] = with_flags(vm_region(&self->vm, 3, 16, 4, 16), LOG_DIRTY);
	today[3] = vm_region(&self->vm, 4, 24, 4, 24);
	today[4] = in_smm(vm_region(&self->vm, 1, 0, 8, 0));
	for (i = 0; i < ARRAY_SIZE(today); i++) {
		ASSERT_EQ(0, vm_set_region(&self->vm, &today[i]));
	}
	self->today = self->vm;
	make_batch(self, variant->batch);
	ASSERT_TRUE(spinner_start(&self->spinner, &self->vm, SPINNER, guest_count, SPINNER_PAGE,
				  1));
}

FIXTURE_TEARDOWN(fail_nth)
{
	if (self->fail_nth < 0)
		return;
	if (self->fail_nth < 0)
		return;
	EXPECT_TRUE(spinner_stop(&self->spinner));
	vm_destroy(&self->vm);
	close(self->fail_nth);
}

TEST_F_TIMEOUT(fail_nth, every_failure_is_whole, 120)
{
	unsigned int n, failed = 0;
	bool injected = true;
	int err;

	if (self->fail_nth < 0)
		SKIP(return, "this kernel has no " FAIL_NTH ": no fault injection");
	for (n = 1; injected; n++) {
		ASSERT_LT(n, MOST_FAILURES);
		ASSERT_TRUE(prepare(self, variant));
		ASSERT_TRUE(arm(self->fail_nth, n));
		err = attempt(self, variant);
		injected = disarm(self->fail_nth);

		if (err) {
			failed++;
			ASSERT_TRUE(injected);
			ASSERT_TRUE(err == -ENOMEM || err == -EFAULT)
			{
				TH_LOG("failure %u: %s", n, strerror(-err));
			}
			ASSERT_TRUE(left_no_trace(self, variant))
			{
				TH_LOG("failure %u: %s", n, strerror(-err));
			}
			ASSERT_EQ(0, attempt(self, variant));
		}
		ASSERT_TRUE(did_all(self, variant))
		{
			TH_LOG("failure %u: %s", n, err ? strerror(-err) : "success");
		}
		ASSERT_EQ(self->locked, locked_memory());
	}
	TH_LOG("%u failures, %u of them made the ioctl fail", n - 2, failed);
	ASSERT_LE(variant->least, failed);
	ASSERT_TRUE(spinner_progresses(&self->spinner, 2));
}
