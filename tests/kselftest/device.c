// SPDX-License-Identifier: GPL-2.0
/* The device file, and the rules that all of its ioctls share. */
#include <fcntl.h>
#include <grp.h>
#include <sys/stat.h>

#include "harness.h"

#define KERNEL_ADDRESS 0xffff888000000000UL
#define NON_CANONICAL_ADDRESS 0x0100000000000000UL
#define POISON 0xa5
#define POISONED 0xa5a5a5a5U

TEST(permissions)
{
	struct stat status;

	ASSERT_EQ(0, stat(DEVICE, &status));
	ASSERT_TRUE(S_ISCHR(status.st_mode));
	ASSERT_EQ(0660, status.st_mode & 07777);
}

TEST(open_needs_permission)
{
	int device = device_open();

	ASSERT_LE(0, device);
	close(device);
	ASSERT_EQ(0, setgroups(0, NULL));
	ASSERT_EQ(0, setgid(65534));
	ASSERT_EQ(0, setuid(65534));
	ASSERT_EQ(-EACCES, device_open());
}

TEST(unknown_ioctls)
{
	const int device = device_open();
	struct memslot_info info = { .size = sizeof(info) };
	unsigned int nr;

	ASSERT_LE(0, device);
	for (nr = 0x40; nr < 0x100; nr++) {
		ASSERT_EQ(-ENOTTY, call_ioctl(device, _IO(MEMSLOT_IOC_TYPE, nr), &info));
	}
	ASSERT_EQ(-ENOTTY, call_ioctl(device, _IO(MEMSLOT_IOC_TYPE + 1, 0), &info));
	ASSERT_EQ(-ENOTTY, call_ioctl(device, _IOR(MEMSLOT_IOC_TYPE, 0, info), &info));
	ASSERT_EQ(-ENOTTY, call_ioctl(device, _IOWR(MEMSLOT_IOC_TYPE, 0, info), &info));
	ASSERT_EQ(-ENOTTY, call_ioctl(device, KVM_CREATE_VM, NULL));
	ASSERT_EQ(0, call_ioctl(device, MEMSLOT_IOC_INFO, &info));
}

TEST(info_agrees_with_kvm)
{
	const int device = device_open(), kvm = open("/dev/kvm", O_RDWR);
	struct memslot_info info = { .size = sizeof(info) };

	ASSERT_LE(0, device);
	ASSERT_LE(0, kvm);
	ASSERT_EQ(0, call_ioctl(device, MEMSLOT_IOC_INFO, &info));
	EXPECT_EQ(MEMSLOT_FEATURE_TEST_ONLY | MEMSLOT_FEATURE_PARK,
		  info.features & (MEMSLOT_FEATURE_TEST_ONLY | MEMSLOT_FEATURE_PARK));
	EXPECT_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS) - 1, info.max_slot);
	EXPECT_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE),
		  info.max_address_spaces);
	/* 512 virtio-mem slots in both address spaces */
	EXPECT_LE(1024, info.max_entries);
	EXPECT_EQ(1U << MEMSLOT_STRATEGY_FENCE | 1U << MEMSLOT_STRATEGY_PARK, info.strategies);
}

static long compat_ioctl(int fd, unsigned int request, void *argument)
{
	const long nr_ioctl = 54; /* of i386 */
	long result;

	asm volatile("int $0x80"
		     : "=a"(result)
		     : "a"(nr_ioctl), "b"((long)fd), "c"((long)request), "d"(argument)
		     : "r8", "r9", "r10", "r11", "memory");
	return result;
}

/* One page below 4 GiB, for callers of 32 bits. */
static void *low_page(void)
{
	return mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT,
		    -1, 0);
}

TEST(callers_of_32_bits)
{
	struct memslot_commit *commit = low_page();
	struct memslot_entry *entry = low_page();
	struct memslot_info *info = low_page();
	struct memslot_bind *bind = low_page();
	struct vm vm;

	ASSERT_TRUE(vm_create(&vm, 1, 8, POOL_SMALL_PAGES));
	vm.window_pages = 16;
	vm.device = device_open();
	ASSERT_LE(0, vm.device);

	info->size = sizeof(*info);
	ASSERT_EQ(0, compat_ioctl(vm.device, MEMSLOT_IOC_INFO, info));
	ASSERT_NE(0, info->max_slot);
	bind->size = sizeof(*bind);
	bind->vm_fd = vm.fd;
	ASSERT_EQ(0, compat_ioctl(vm.device, MEMSLOT_IOC_BIND, bind));
	*entry = vm_region(&vm, 1, 4, 8, 0);
	*commit = (struct memslot_commit){
		.size = sizeof(*commit),
		.entries = (unsigned long)entry,
		.count = 1,
		.entry_size = sizeof(*entry),
	};
	ASSERT_EQ(0, compat_ioctl(vm.device, MEMSLOT_IOC_COMMIT, commit));
	ASSERT_EQ(1, commit->created);
	model_apply(&vm, entry, 1);
	ASSERT_TRUE(vm_check(&vm));
	ASSERT_EQ(-ENOTTY, compat_ioctl(vm.device, _IO(MEMSLOT_IOC_TYPE, 0x40), commit));
	vm_destroy(&vm);
}

union argument {
	struct memslot_info info;
	struct memslot_bind bind;
	struct memslot_stage stage;
	struct memslot_commit commit;
	struct memslot_reset reset;
	struct memslot_query query;
};

/*
 * @room is readable and writable, and followed by a page that is not.  Each
 * variant has an effect that can be seen: the file is bound, an entry staged,
 * a slot created, the staged entry gone.
 */
FIXTURE(argument) {
	struct vm vm;
	struct memslot_entry entry;
	struct memslot_entry slots[1];
	unsigned char *room;
	unsigned char *room_end;
};

FIXTURE_VARIANT(argument) {
	unsigned long request;
	__u32 first_size;
	__u32 size;
	__u32 known_flags;
	__u32 out_start;
	__u32 out_end;
};

FIXTURE_VARIANT_ADD(argument, info) {
	.request = MEMSLOT_IOC_INFO,
	.first_size = INFO_FIRST_SIZE,
	.size = sizeof(struct memslot_info),
	.out_start = offsetof(struct memslot_info, features),
	.out_end = sizeof(struct memslot_info),
};

FIXTURE_VARIANT_ADD(argument, bind) {
	.request = MEMSLOT_IOC_BIND,
	.first_size = BIND_FIRST_SIZE,
	.size = sizeof(struct memslot_bind),
	.known_flags = MEMSLOT_BIND_QUERY_ONLY,
	.out_start = offsetof(struct memslot_bind, address_spaces),
	.out_end = offsetof(struct memslot_bind, reserved),
};

FIXTURE_VARIANT_ADD(argument, stage) {
	.request = MEMSLOT_IOC_STAGE,
	.first_size = STAGE_FIRST_SIZE,
	.size = sizeof(struct memslot_stage),
	.out_start = offsetof(struct memslot_stage, failed_index),
	.out_end = sizeof(struct memslot_stage),
};

FIXTURE_VARIANT_ADD(argument, commit) {
	.request = MEMSLOT_IOC_COMMIT,
	.first_size = COMMIT_FIRST_SIZE,
	.size = sizeof(struct memslot_commit),
	.known_flags = MEMSLOT_COMMIT_TEST_ONLY | MEMSLOT_COMMIT_PARK |
		       MEMSLOT_COMMIT_REPLACE_ALL | MEMSLOT_COMMIT_IF_GENERATION,
	.out_start = offsetof(struct memslot_commit, failed_index),
	.out_end = offsetof(struct memslot_commit, if_generation),
};

FIXTURE_VARIANT_ADD(argument, reset) {
	.request = MEMSLOT_IOC_RESET,
	.first_size = RESET_FIRST_SIZE,
	.size = sizeof(struct memslot_reset),
	.out_start = sizeof(struct memslot_reset),
	.out_end = sizeof(struct memslot_reset),
};

FIXTURE_VARIANT_ADD(argument, query) {
	.request = MEMSLOT_IOC_QUERY,
	.first_size = QUERY_FIRST_SIZE,
	.size = sizeof(struct memslot_query),
	.out_start = offsetof(struct memslot_query, reason),
	.out_end = sizeof(struct memslot_query),
};

FIXTURE_SETUP(argument)
{
	ASSERT_TRUE(vm_create(&self->vm, 1, 8, POOL_SMALL_PAGES));
	self->entry = vm_region(&self->vm, 1, 0, 8, 0);
	self->room = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	ASSERT_NE(MAP_FAILED, self->room);
	self->room_end = self->room + 3 * PAGE;
	ASSERT_EQ(0, mprotect(self->room_end, PAGE, PROT_NONE));
}

FIXTURE_TEARDOWN(argument)
{
	vm_destroy(&self->vm);
}

/* Brings the VM and the file to a state from which the call has an effect. */
static bool prepare(FIXTURE_DATA(argument) *self, const FIXTURE_VARIANT(argument) *variant)
{
	const struct memslot_entry gone = absent(self->entry.slot);
	struct memslot_stage reply;

	if (self->vm.device >= 0)
		close(self->vm.device);
	if (variant->request == MEMSLOT_IOC_BIND) {
		self->vm.device = device_open();
		return self->vm.device >= 0;
	}
	if (!vm_bind(&self->vm))
		return false;
	if (variant->request == MEMSLOT_IOC_RESET)
		return !device_stage(self->vm.device, &self->entry, 1, &reply);
	if (model_find(&self->vm, 0, gone.slot))
		return !vm_set_region(&self->vm, &gone);
	return true;
}

/* Did the call have its effect? */
static bool happened(FIXTURE_DATA(argument) *self, const FIXTURE_VARIANT(argument) *variant)
{
	struct memslot_commit reply;

	switch (variant->request) {
	case MEMSLOT_IOC_BIND:
		return !device_reset(self->vm.device);
	case MEMSLOT_IOC_STAGE:
		return !device_commit(self->vm.device, MEMSLOT_COMMIT_TEST_ONLY, NULL, 0,
				      &reply) && reply.created == 1;
	case MEMSLOT_IOC_COMMIT:
		if (device_commit(self->vm.device, MEMSLOT_COMMIT_TEST_ONLY, &self->entry, 1,
				  &reply) || reply.created)
			return false;
		model_apply(&self->vm, &self->entry, 1);
		return true;
	case MEMSLOT_IOC_RESET:
		return !device_commit(self->vm.device, MEMSLOT_COMMIT_TEST_ONLY, NULL, 0,
				      &reply) && !reply.created;
	default:
		return true;
	}
}

static bool only_asks(const FIXTURE_VARIANT(argument) *variant)
{
	return variant->request == MEMSLOT_IOC_INFO || variant->request == MEMSLOT_IOC_QUERY;
}

/* The opposite, for calls that must have failed; a question has no effect. */
static bool did_not_happen(FIXTURE_DATA(argument) *self, const FIXTURE_VARIANT(argument) *variant)
{
	return only_asks(variant) || !happened(self, variant);
}

/* A valid argument, but for its size; what lies beyond the struct is zero. */
static union argument valid(FIXTURE_DATA(argument) *self,
			    const FIXTURE_VARIANT(argument) *variant)
{
	union argument argument;

	memset(&argument, 0, sizeof(argument));
	argument.info.size = variant->size;
	memset((unsigned char *)&argument + variant->out_start, POISON,
	       variant->out_end - variant->out_start);
	switch (variant->request) {
	case MEMSLOT_IOC_BIND:
		argument.bind.vm_fd = self->vm.fd;
		break;
	case MEMSLOT_IOC_STAGE:
		argument.stage.entries = (unsigned long)&self->entry;
		argument.stage.count = 1;
		argument.stage.entry_size = sizeof(self->entry);
		break;
	case MEMSLOT_IOC_COMMIT:
		argument.commit.entries = (unsigned long)&self->entry;
		argument.commit.count = 1;
		argument.commit.entry_size = sizeof(self->entry);
		break;
	case MEMSLOT_IOC_QUERY:
		/* the guest's own slot, and so what the array gets is the same each time */
		argument.query.entries = (unsigned long)self->slots;
		argument.query.count = 1;
		argument.query.entry_size = sizeof(self->slots[0]);
		break;
	}
	return argument;
}

/* Puts a valid argument of another size somewhere, with zeros behind the struct. */
static void place(FIXTURE_DATA(argument) *self, const FIXTURE_VARIANT(argument) *variant,
		  unsigned char *where, __u32 size)
{
	union argument argument = valid(self, variant);
	__u32 room = self->room_end - where;

	argument.info.size = size;
	memset(where, 0, room);
	memcpy(where, &argument, room < variant->size ? room : variant->size);
}

TEST_F(argument, sizes_are_those_of_the_first_version_or_more)
{
	ASSERT_GE(variant->size, variant->first_size);
	ASSERT_EQ(ENTRY_FIRST_SIZE, offsetof(struct memslot_entry, userspace_addr) + 8);
}

TEST_F(argument, too_short)
{
	__u32 size;

	for (size = 0; size < variant->first_size; size++) {
		ASSERT_TRUE(prepare(self, variant));
		place(self, variant, self->room, size);
		ASSERT_EQ(-EINVAL, call_ioctl(self->vm.device, variant->request, self->room));
		ASSERT_TRUE(did_not_happen(self, variant)) TH_LOG("size %u", size);
	}
}

TEST_F(argument, exact)
{
	__u32 size;

	/* Nothing beyond the struct may be touched. */
	for (size = variant->first_size; size <= variant->size; size++) {
		ASSERT_TRUE(prepare(self, variant));
		place(self, variant, self->room_end - size, size);
		ASSERT_EQ(0, call_ioctl(self->vm.device, variant->request,
					self->room_end - size));
		ASSERT_TRUE(happened(self, variant));
	}
}

TEST_F(argument, longer_with_zeros)
{
	const __u32 sizes[] = { variant->size + 1, variant->size + 8, PAGE - 1, PAGE };
	unsigned int i, byte;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned char *where = self->room_end - sizes[i];

		ASSERT_TRUE(prepare(self, variant));
		place(self, variant, where, sizes[i]);
		ASSERT_EQ(0, call_ioctl(self->vm.device, variant->request, where));
		ASSERT_TRUE(happened(self, variant));
		ASSERT_EQ(sizes[i], *(__u32 *)where);
		for (byte = variant->size; byte < sizes[i]; byte++) {
			ASSERT_EQ(0, where[byte]);
		}
	}
}

TEST_F(argument, longer_with_anything_else)
{
	const __u32 sizes[] = { variant->size + 1, variant->size + 8, PAGE };
	unsigned int i, last;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (last = 0; last < 2; last++) {
			ASSERT_TRUE(prepare(self, variant));
			place(self, variant, self->room, sizes[i]);
			self->room[last ? sizes[i] - 1 : variant->size] = 1;
			ASSERT_EQ(-E2BIG, call_ioctl(self->vm.device, variant->request,
						     self->room));
			ASSERT_TRUE(did_not_happen(self, variant));
		}
	}
}

TEST_F(argument, larger_than_a_page)
{
	const __u32 sizes[] = { PAGE + 1, 2 * PAGE, 0x7fffffff, 0x80000000, 0xffffffff };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		ASSERT_TRUE(prepare(self, variant));
		place(self, variant, self->room, sizes[i]);
		ASSERT_EQ(-E2BIG, call_ioctl(self->vm.device, variant->request, self->room));
		ASSERT_TRUE(did_not_happen(self, variant));
	}
}

TEST_F(argument, unreadable)
{
	void *const addresses[] = {
		NULL,
		self->room_end,
		(void *)KERNEL_ADDRESS,
		(void *)NON_CANONICAL_ADDRESS,
		(void *)-1UL,
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(addresses); i++) {
		ASSERT_TRUE(prepare(self, variant));
		ASSERT_EQ(-EFAULT,
			  call_ioctl(self->vm.device, variant->request, addresses[i]));
		ASSERT_TRUE(did_not_happen(self, variant));
	}
}

TEST_F(argument, crosses_into_an_unreadable_page)
{
	__u32 readable;

	for (readable = 1; readable < variant->size; readable++) {
		ASSERT_TRUE(prepare(self, variant));
		place(self, variant, self->room_end - readable, variant->size);
		ASSERT_EQ(-EFAULT, call_ioctl(self->vm.device, variant->request,
					      self->room_end - readable));
		ASSERT_TRUE(did_not_happen(self, variant));
	}
}

TEST_F(argument, unknown_flags)
{
	unsigned int bit;

	for (bit = 0; bit < 32; bit++) {
		if (variant->known_flags & (1U << bit))
			continue;
		ASSERT_TRUE(prepare(self, variant));
		place(self, variant, self->room, variant->size);
		((struct memslot_info *)self->room)->flags = 1U << bit;
		ASSERT_EQ(-EOPNOTSUPP,
			  call_ioctl(self->vm.device, variant->request, self->room));
		ASSERT_TRUE(did_not_happen(self, variant));
	}
}

/* On success and on failure: out fields are written, all others left alone. */
TEST_F(argument, what_is_written)
{
	const __u32 flags[] = { 0, 1U << 31 };
	const unsigned char *room = self->room;
	union argument argument;
	unsigned int i, byte;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		ASSERT_TRUE(prepare(self, variant));
		argument = valid(self, variant);
		argument.info.flags = flags[i];
		memcpy(self->room, &argument, variant->size);
		self->room[variant->size] = POISON;
		ASSERT_EQ(flags[i] ? -EOPNOTSUPP : 0,
			  call_ioctl(self->vm.device, variant->request, self->room));
		for (byte = 0; byte <= variant->size; byte++) {
			const unsigned char *sent = (unsigned char *)&argument + byte;

			if (byte >= variant->out_start && byte < variant->out_end)
				continue;
			ASSERT_EQ(byte < variant->size ? *sent : POISON, room[byte])
				TH_LOG("byte %u, flags 0x%x", byte, flags[i]);
		}
		for (byte = variant->out_start; byte < variant->out_end; byte += 4) {
			ASSERT_NE(POISONED, *(const __u32 *)(room + byte))
				TH_LOG("byte %u, flags 0x%x", byte, flags[i]);
		}
	}
}

/* What was done must not be reported as failed; a question has no other effect. */
TEST_F(argument, reply_cannot_be_written)
{
	const int expected = only_asks(variant) ? -EFAULT : 0;

	ASSERT_TRUE(prepare(self, variant));
	place(self, variant, self->room, variant->size);
	ASSERT_EQ(0, mprotect(self->room, PAGE, PROT_READ));
	ASSERT_EQ(expected, call_ioctl(self->vm.device, variant->request, self->room));
	ASSERT_TRUE(happened(self, variant));

	/* Nor does it hide what really went wrong. */
	ASSERT_EQ(0, mprotect(self->room, PAGE, PROT_READ | PROT_WRITE));
	((struct memslot_info *)self->room)->flags = 1U << 31;
	ASSERT_EQ(0, mprotect(self->room, PAGE, PROT_READ));
	ASSERT_EQ(-EOPNOTSUPP, call_ioctl(self->vm.device, variant->request, self->room));
}
