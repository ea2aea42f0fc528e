// SPDX-License-Identifier: GPL-2.0
/* Commits beside what KVM can do since 6.8: a kernel without it skips the test. */
#include <sys/mman.h>

#include "harness.h"
#include "kvm_newer.h"

#define SPUN 16 /* pages that running vCPUs read and execute */
#define ROUNDS 200

static int vm_capability(const struct vm *vm, long capability)
{
	return ioctl(vm->fd, KVM_CHECK_EXTENSION, capability);
}

FIXTURE(newer) {
	struct vm vm;
	struct memslot_commit reply;
};

FIXTURE_SETUP(newer)
{
	ASSERT_TRUE(vm_create(&self->vm, 3, 256, POOL_SMALL_PAGES));
	self->vm.window_pages = 128;
	ASSERT_TRUE(vm_bind(&self->vm));
}

FIXTURE_TEARDOWN(newer)
{
	vm_destroy(&self->vm);
}

/* ---- KVM_SET_USER_MEMORY_REGION2 ---- */

static int set_region2(struct vm *vm, const struct memslot_entry *entry)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = entry->slot | entry->address_space << 16,
		.flags = entry->flags,
		.guest_phys_addr = entry->guest_phys_addr,
		.memory_size = entry->memory_size,
		.userspace_addr = entry->userspace_addr,
	};
	int err = call_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION2, &region);

	if (!err)
		model_apply(vm, entry, 1);
	return err;
}

TEST_F(newer, both_ways_change_the_same_slots)
{
	struct memslot_entry entry = vm_region(&self->vm, 1, 0, 16, 0);
	const struct memslot_entry split[] = { vm_region(&self->vm, 1, 0, 4, 0),
					       vm_region(&self->vm, 2, 4, 12, 100) };

	if (vm_capability(&self->vm, KVM_CAP_USER_MEMORY2) <= 0)
		SKIP(return, "KVM has no KVM_SET_USER_MEMORY_REGION2");
	ASSERT_EQ(0, set_region2(&self->vm, &entry));
	ASSERT_TRUE(vm_apply(&self->vm, split, 2, &self->reply));
	EXPECT_EQ(1, self->reply.replaced);
	EXPECT_EQ(1, self->reply.created);
	entry = absent(2);
	ASSERT_EQ(0, set_region2(&self->vm, &entry));
	entry = with_flags(split[0], MEMSLOT_ENTRY_LOG_DIRTY_PAGES);
	ASSERT_EQ(0, set_region2(&self->vm, &entry));
	ASSERT_TRUE(vm_check(&self->vm));
	ASSERT_TRUE(vm_apply(&self->vm, &split[1], 1, &self->reply));
	entry = vm_region(&self->vm, 1, 0, 4, 0);
	ASSERT_TRUE(vm_apply(&self->vm, &entry, 1, &self->reply));
	EXPECT_EQ(1, self->reply.reflagged);
}

/* ---- KVM_PRE_FAULT_MEMORY ---- */

struct prefaulter {
	struct vm *vm;
	bool of_what_goes; /* then there may be no memory, or a slot that is going */
	unsigned int vcpu;
	pthread_t thread;
	int stop;
	unsigned int calls, interrupted;
	int err;
};

static void *pre_fault(void *argument)
{
	struct prefaulter *self = argument;

	while (!__atomic_load_n(&self->stop, __ATOMIC_SEQ_CST)) {
		struct kvm_pre_fault_memory range = { .gpa = WINDOW, .size = SPUN * PAGE };
		int err = call_ioctl(self->vm->vcpu[self->vcpu], KVM_PRE_FAULT_MEMORY, &range);

		__atomic_add_fetch(&self->calls, 1, __ATOMIC_SEQ_CST);
		if (self->of_what_goes && err == -ENOENT)
			continue;
		if (err == -EINTR || (self->of_what_goes && err == -EAGAIN) || range.size)
			__atomic_add_fetch(&self->interrupted, 1, __ATOMIC_SEQ_CST);
		else if (err)
			self->err = err;
	}
	return NULL;
}

/*
 * It retries a fault inside one SRCU section for as long as the fence is up,
 * and the fence is up until all SRCU sections have ended.
 */
TEST_F(newer, pre_faulting_never_blocks_a_commit)
{
	const struct memslot_entry layouts[] = { vm_region(&self->vm, 1, 0, SPUN, 0),
						 vm_region(&self->vm, 1, 0, SPUN, 64) };
	struct prefaulter prefaulter = { .vm = &self->vm, .vcpu = 2 };
	const double deadline = seconds() + patience();
	struct spinner spinner;
	unsigned int i;

	if (vm_capability(&self->vm, KVM_CAP_PRE_FAULT_MEMORY) <= 0)
		SKIP(return, "KVM has no KVM_PRE_FAULT_MEMORY for such a VM");
	ASSERT_EQ(0, vm_set_region(&self->vm, &layouts[0]));
	ASSERT_TRUE(spinner_start(&spinner, &self->vm, 0, guest_spin, WINDOW, SPUN));
	ASSERT_EQ(0, pthread_create(&prefaulter.thread, NULL, pre_fault, &prefaulter));

	/* Until some commits have met it in its loop, which is what this is about. */
	for (i = 0; i < ROUNDS ||
	     (seconds() < deadline &&
	      __atomic_load_n(&prefaulter.interrupted, __ATOMIC_SEQ_CST) < 3);
	     i++) {
		const double start = seconds();

		ASSERT_EQ(0, device_commit(self->vm.device, 0, &layouts[(i + 1) % 2], 1,
					   &self->reply));
		ASSERT_GT(patience(), seconds() - start);
		ASSERT_EQ(MEMSLOT_STRATEGY_FENCE, self->reply.strategy);
		model_apply(&self->vm, &layouts[(i + 1) % 2], 1);
	}
	EXPECT_LE(3, __atomic_load_n(&prefaulter.interrupted, __ATOMIC_SEQ_CST));
	/* ... and a commit that parks holds it back like any vCPU */
	for (i = 0; i < 10; i++) {
		ASSERT_EQ(0, device_commit(self->vm.device, MEMSLOT_COMMIT_PARK, &layouts[i % 2],
					   1, &self->reply));
		model_apply(&self->vm, &layouts[i % 2], 1);
	}
	ASSERT_TRUE(spinner_progresses(&spinner, 2));
	__atomic_store_n(&prefaulter.stop, 1, __ATOMIC_SEQ_CST);
	pthread_join(prefaulter.thread, NULL);
	EXPECT_EQ(0, prefaulter.err);
	EXPECT_LT(0, prefaulter.calls);
	ASSERT_TRUE(spinner_stop(&spinner));
	ASSERT_TRUE(vm_check(&self->vm));
}

/*
 * Nor does it hold up the first of the two grace periods of a commit that takes the
 * memory away: 6.12 retries a fault in a slot that is marked invalid, 7.3 gives up.
 */
TEST_F(newer, pre_faulting_of_what_goes_never_blocks_a_commit)
{
	const struct memslot_entry there = vm_region(&self->vm, 1, 0, SPUN, 0);
	const struct memslot_entry gone = absent(1);
	const struct memslot_entry spun = vm_region(&self->vm, 2, 64, SPUN, 128);
	struct prefaulter prefaulter = { .vm = &self->vm, .of_what_goes = true, .vcpu = 2 };
	struct spinner spinner;
	unsigned int i;

	if (vm_capability(&self->vm, KVM_CAP_PRE_FAULT_MEMORY) <= 0)
		SKIP(return, "KVM has no KVM_PRE_FAULT_MEMORY for such a VM");
	ASSERT_EQ(0, vm_set_region(&self->vm, &there));
	ASSERT_EQ(0, vm_set_region(&self->vm, &spun));
	ASSERT_TRUE(spinner_start(&spinner, &self->vm, 0, guest_spin, WINDOW + 64 * PAGE, SPUN));
	ASSERT_EQ(0, pthread_create(&prefaulter.thread, NULL, pre_fault, &prefaulter));

	/* Until some commits have met it in its loop, which is what this is about. */
	for (i = 0; i < ROUNDS ||
	     (i < 20 * ROUNDS && __atomic_load_n(&prefaulter.interrupted, __ATOMIC_SEQ_CST) < 3);
	     i++) {
		const double start = seconds();

		ASSERT_EQ(0, device_commit(self->vm.device, 0, i % 2 ? &there : &gone, 1,
					   &self->reply));
		ASSERT_GT(patience(), seconds() - start);
		if (kvm_has_tdp_mmu()) {
			ASSERT_EQ(MEMSLOT_STRATEGY_FENCE, self->reply.strategy);
			ASSERT_EQ(i % 2 || !kvm_can_nest() ? 1 : 2, self->reply.grace_periods);
		}
		model_apply(&self->vm, i % 2 ? &there : &gone, 1);
	}
	EXPECT_LE(3, __atomic_load_n(&prefaulter.interrupted, __ATOMIC_SEQ_CST));
	if (kvm_has_tdp_mmu()) {
		EXPECT_EQ(0, spinner_interrupted(&spinner));
	}
	__atomic_store_n(&prefaulter.stop, 1, __ATOMIC_SEQ_CST);
	pthread_join(prefaulter.thread, NULL);
	EXPECT_EQ(0, prefaulter.err);
	ASSERT_TRUE(spinner_stop(&spinner));
	ASSERT_TRUE(vm_check(&self->vm));
}

/* More than the 16 that the module watches at once: they are made to return, too. */
TEST_F(newer, many_that_pre_fault_at_once)
{
	const double deadline = seconds() + patience();
	struct prefaulter prefaulters[24] = {};
	unsigned int i, round, before, now = 0, most = 0;
	struct memslot_entry layouts[2];
	struct vm vm;

	if (vm_capability(&self->vm, KVM_CAP_PRE_FAULT_MEMORY) <= 0)
		SKIP(return, "KVM has no KVM_PRE_FAULT_MEMORY for such a VM");
	ASSERT_TRUE(vm_create(&vm, ARRAY_SIZE(prefaulters), 256, POOL_SMALL_PAGES));
	vm.window_pages = 128;
	ASSERT_TRUE(vm_bind(&vm));
	layouts[0] = vm_region(&vm, 1, 0, SPUN, 0);
	layouts[1] = vm_region(&vm, 1, 0, SPUN, 64);
	ASSERT_EQ(0, vm_set_region(&vm, &layouts[0]));
	for (i = 0; i < ARRAY_SIZE(prefaulters); i++) {
		prefaulters[i].vm = &vm;
		prefaulters[i].vcpu = i;
		ASSERT_EQ(0, pthread_create(&prefaulters[i].thread, NULL, pre_fault,
					    &prefaulters[i]));
	}
	for (round = 0; round < 10 || (seconds() < deadline && most <= 16); round++) {
		const double start = seconds();

		ASSERT_EQ(0, device_commit(vm.device, 0, &layouts[(round + 1) % 2], 1,
					   &self->reply));
		ASSERT_GT(patience(), seconds() - start);
		before = now;
		now = 0;
		for (i = 0; i < ARRAY_SIZE(prefaulters); i++)
			now += __atomic_load_n(&prefaulters[i].interrupted, __ATOMIC_SEQ_CST);
		most = now - before > most ? now - before : most;
	}
	EXPECT_LT(16, most);
	for (i = 0; i < ARRAY_SIZE(prefaulters); i++) {
		__atomic_store_n(&prefaulters[i].stop, 1, __ATOMIC_SEQ_CST);
		pthread_join(prefaulters[i].thread, NULL);
		EXPECT_EQ(0, prefaulters[i].err);
	}
	vm_destroy(&vm);
}

/* What a thread has had of the processors. */
static double thread_cpu_seconds(pthread_t thread)
{
	struct timespec used = {};
	clockid_t clock;

	if (!pthread_getcpuclockid(thread, &clock))
		clock_gettime(clock, &used);
	return used.tv_sec + used.tv_nsec / 1e9;
}

static void *pre_fault_once(void *argument)
{
	struct prefaulter *self = argument;
	struct kvm_pre_fault_memory range = { .gpa = WINDOW, .size = SPUN * PAGE };

	self->err = call_ioctl(self->vm->vcpu[self->vcpu], KVM_PRE_FAULT_MEMORY, &range);
	__atomic_add_fetch(&self->calls, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/*
 * Nor does it need a fence for that: where KVM has made the root of its page
 * tables obsolete, 6.12 retries for as long as no signal comes.
 */
TEST_F(newer, pre_faulting_by_an_obsolete_root_never_blocks_a_commit)
{
	const struct memslot_entry slot = vm_region(&self->vm, 1, 0, SPUN, 0);
	const struct memslot_entry logged = with_flags(slot, MEMSLOT_ENTRY_LOG_DIRTY_PAGES);
	struct memslot_entry aside = vm_region(&self->vm, 2, 64, SPUN, 128);
	struct prefaulter prefaulter = { .vm = &self->vm, .vcpu = 2 };
	double start;

	if (vm_capability(&self->vm, KVM_CAP_PRE_FAULT_MEMORY) <= 0)
		SKIP(return, "KVM has no KVM_PRE_FAULT_MEMORY for such a VM");
	/* makes the root, which KVM's deletion of another slot makes obsolete */
	ASSERT_EQ(0, vm_set_region(&self->vm, &slot));
	ASSERT_EQ(0, vm_set_region(&self->vm, &aside));
	pre_fault_once(&prefaulter);
	ASSERT_EQ(0, prefaulter.err);
	aside = absent(2);
	ASSERT_EQ(0, vm_set_region(&self->vm, &aside));

	ASSERT_EQ(0, pthread_create(&prefaulter.thread, NULL, pre_fault_once, &prefaulter));
	/* It has come back, or has been in there for long enough to retry. */
	while (thread_cpu_seconds(prefaulter.thread) < 0.1 &&
	       __atomic_load_n(&prefaulter.calls, __ATOMIC_SEQ_CST) < 2)
		usleep(1000);
	start = seconds();
	ASSERT_EQ(0, device_commit(self->vm.device, 0, &logged, 1, &self->reply));
	EXPECT_GT(patience(), seconds() - start);
	EXPECT_EQ(1, self->reply.reflagged);
	pthread_join(prefaulter.thread, NULL);
	EXPECT_TRUE(prefaulter.err == 0 || prefaulter.err == -EINTR);
	TH_LOG("KVM_PRE_FAULT_MEMORY: %d", prefaulter.err);
}

/* The patrol is for those only: who runs the guest stays in KVM_RUN. */
TEST_F(newer, long_grace_period_leaves_running_vcpus_alone)
{
	const struct memslot_entry layouts[] = { vm_region(&self->vm, 1, 0, SPUN, 0),
						 vm_region(&self->vm, 1, 0, SPUN, 64) };
	struct memslot_entry aside = vm_region(&self->vm, 2, 64, SPUN, 128);
	struct prefaulter prefaulter = { .vm = &self->vm, .vcpu = 2 };
	const double deadline = seconds() + patience();
	struct spinner spinner;
	unsigned int i;

	if (vm_capability(&self->vm, KVM_CAP_PRE_FAULT_MEMORY) <= 0)
		SKIP(return, "KVM has no KVM_PRE_FAULT_MEMORY for such a VM");
	ASSERT_EQ(0, vm_set_region(&self->vm, &layouts[0]));
	ASSERT_EQ(0, vm_set_region(&self->vm, &aside));
	ASSERT_TRUE(spinner_start(&spinner, &self->vm, 0, guest_spin, WINDOW + 64 * PAGE, SPUN));
	ASSERT_EQ(0, pthread_create(&prefaulter.thread, NULL, pre_fault, &prefaulter));
	for (i = 0; seconds() < deadline &&
	     __atomic_load_n(&prefaulter.interrupted, __ATOMIC_SEQ_CST) < 3; i++) {
		ASSERT_EQ(0, device_commit(self->vm.device, 0, &layouts[(i + 1) % 2], 1,
					   &self->reply));
	}
	EXPECT_LE(3, prefaulter.interrupted);
	EXPECT_EQ(0, spinner_interrupted(&spinner));
	__atomic_store_n(&prefaulter.stop, 1, __ATOMIC_SEQ_CST);
	pthread_join(prefaulter.thread, NULL);
	ASSERT_TRUE(spinner_stop(&spinner));
}

/* ---- KVM_X86_QUIRK_SLOT_ZAP_ALL ---- */

/*
 * With the quirk off, KVM zaps a slot and not all.  Then each slot of a batch
 * has to be: with shadow paging, all of them are mapped by what KVM zaps.
 */
TEST_F(newer, zap_quirk_off)
{
	struct kvm_enable_cap quirk = {
		.cap = KVM_CAP_DISABLE_QUIRKS2,
		.args = { KVM_X86_QUIRK_SLOT_ZAP_ALL },
	};
	const struct memslot_entry first[] = {
		vm_region(&self->vm, 1, 0, 16, 0), vm_region(&self->vm, 2, 16, 16, 32),
		vm_region(&self->vm, 3, 32, 16, 64), vm_region(&self->vm, 4, 64, 16, 96),
	};
	const struct memslot_entry second[] = {
		vm_region(&self->vm, 1, 0, 16, 128), vm_region(&self->vm, 2, 16, 16, 160),
		vm_region(&self->vm, 3, 32, 16, 192), vm_region(&self->vm, 4, 64, 16, 224),
	};
	const struct memslot_entry gone[] = { absent(3), absent(4) };
	struct spinner spinner;
	unsigned int i;

	if (!(vm_capability(&self->vm, KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL))
		SKIP(return, "KVM has no KVM_X86_QUIRK_SLOT_ZAP_ALL");
	ASSERT_EQ(0, call_ioctl(self->vm.fd, KVM_ENABLE_CAP, &quirk));

	/* what the guest reads in between maps all of it */
	for (i = 0; i < 4; i++) {
		ASSERT_TRUE(vm_apply(&self->vm, first, 4, &self->reply));
		ASSERT_TRUE(vm_apply(&self->vm, gone, 2, &self->reply));
		ASSERT_TRUE(vm_apply(&self->vm, first, 4, &self->reply));
		ASSERT_TRUE(vm_apply(&self->vm, second, 4, &self->reply));
	}

	ASSERT_TRUE(spinner_start(&spinner, &self->vm, 0, guest_spin, WINDOW, 48));
	for (i = 0; i < 40; i++) {
		ASSERT_EQ(0, device_commit(self->vm.device, i & 4 ? MEMSLOT_COMMIT_PARK : 0,
					   i % 2 ? second : first, 4, &self->reply));
		ASSERT_EQ(4, self->reply.replaced);
		model_apply(&self->vm, i % 2 ? second : first, 4);
		ASSERT_TRUE(spinner_progresses(&spinner, 1));
	}
	ASSERT_TRUE(spinner_stop(&spinner));
	ASSERT_TRUE(vm_check(&self->vm));
	/* KVM goes on from there by itself. */
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, vm_set_region(&self->vm, &gone[i]));
		ASSERT_TRUE(vm_check(&self->vm));
	}
}

/* ---- Other types of VMs, memory attributes, guest_memfd ---- */

/* What KVM's own types are not, is refused; and they are what has attributes. */
TEST(other_vm_types_are_refused)
{
	const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct memslot_bind reply;
	int types, type, vm, device;

	ASSERT_LE(0, kvm);
	types = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES);
	ASSERT_LE(0, types);
	for (type = 0; type < 31; type++) {
		vm = ioctl(kvm, KVM_CREATE_VM, type);
		if (vm < 0) {
			/* the default type is always there */
			ASSERT_NE(0, type);
			continue;
		}
		device = device_open();
		ASSERT_LE(0, device);
		if (!type) {
			ASSERT_EQ(0, device_bind(device, vm, &reply));
		} else {
			ASSERT_TRUE(types & 1 << type);
			ASSERT_EQ(-EOPNOTSUPP, device_bind(device, vm, &reply));
			ASSERT_EQ(MEMSLOT_REASON_VM_TYPE, reply.reason);
		}
		close(device);
		close(vm);
	}
	close(kvm);
}

/* A VM that is served has no memory attributes, whatever it tries. */
TEST_F(newer, memory_attributes_stay_out)
{
	struct kvm_memory_attributes private = {
		.address = WINDOW,
		.size = 16 * PAGE,
		.attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE,
	};
	struct memslot_entry entry = vm_region(&self->vm, 1, 0, 16, 0);

	ASSERT_TRUE(vm_apply(&self->vm, &entry, 1, &self->reply));
	ASSERT_GE(0, vm_capability(&self->vm, KVM_CAP_MEMORY_ATTRIBUTES));
	ASSERT_GT(0, call_ioctl(self->vm.fd, KVM_SET_MEMORY_ATTRIBUTES, &private));
	entry = vm_region(&self->vm, 1, 8, 8, 64);
	ASSERT_TRUE(vm_apply(&self->vm, &entry, 1, &self->reply));
}

TEST_F(newer, guest_memfd_slots_stay_untouched)
{
	struct kvm_create_guest_memfd create = {
		.size = 8 * PAGE,
		.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	};
	struct kvm_userspace_memory_region2 region = {
		.slot = 9,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = WINDOW + 32 * PAGE,
		.memory_size = 8 * PAGE,
	};
	struct memslot_entry entries[] = { vm_region(&self->vm, 1, 0, 32, 0),
					   vm_region(&self->vm, 2, 40, 16, 64) };
	struct memslot_entry own = { .slot = 9, .guest_phys_addr = region.guest_phys_addr,
				     .memory_size = region.memory_size };
	struct memslot_entry wrong;
	__u32 *memory, words[8];
	unsigned int i;

	if (vm_capability(&self->vm, KVM_CAP_GUEST_MEMFD) <= 0 ||
	    !(vm_capability(&self->vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_MMAP))
		SKIP(return, "KVM has no guest_memfd for such a VM");
	region.guest_memfd = ioctl(self->vm.fd, KVM_CREATE_GUEST_MEMFD, &create);
	ASSERT_LE(0, (int)region.guest_memfd);
	memory = mmap(NULL, create.size, PROT_READ | PROT_WRITE, MAP_SHARED, region.guest_memfd,
		      0);
	ASSERT_NE(MAP_FAILED, memory);
	region.userspace_addr = (unsigned long)memory;
	own.userspace_addr = region.userspace_addr;
	ASSERT_EQ(0, call_ioctl(self->vm.fd, KVM_SET_USER_MEMORY_REGION2, &region));
	for (i = 0; i < 8; i++)
		memory[i * PAGE / sizeof(*memory)] = 0x6e6d + i;
	/* to the model, it is a slot like any other */
	model_apply(&self->vm, &own, 1);
	ASSERT_TRUE(vm_check(&self->vm));

	/* Its neighbours come, change and go. */
	ASSERT_TRUE(vm_apply(&self->vm, entries, 2, &self->reply));
	entries[0] = vm_region(&self->vm, 1, 0, 32, 100);
	entries[1] = absent(2);
	ASSERT_TRUE(vm_apply(&self->vm, entries, 2, &self->reply));
	ASSERT_TRUE(vm_scan(&self->vm, 0, region.guest_phys_addr, 8, words));
	for (i = 0; i < 8; i++) {
		ASSERT_EQ(0x6e6d + i, words[i]);
	}

	/* Whatever a batch wants of it, it is refused, and so is the rest. */
	for (i = 0; i < 3; i++) {
		entries[0] = vm_region(&self->vm, 1, 0, 16, 0);
		entries[1] = i == 0 ? absent(9) : i == 1 ? own : vm_region(&self->vm, 9, 64, 8, 0);
		ASSERT_EQ(-EOPNOTSUPP, device_commit(self->vm.device, 0, entries, 2,
						     &self->reply));
		ASSERT_EQ(MEMSLOT_REASON_GUEST_MEMFD, self->reply.reason);
		ASSERT_EQ(1, self->reply.failed_index);
		ASSERT_TRUE(vm_check(&self->vm));
	}
	wrong = vm_region(&self->vm, 3, 36, 8, 0);
	ASSERT_EQ(-EEXIST, device_commit(self->vm.device, 0, &wrong, 1, &self->reply));
	wrong = vm_region(&self->vm, 3, 64, 8, 0);
	wrong.flags = KVM_MEM_GUEST_MEMFD;
	ASSERT_GT(0, device_commit(self->vm.device, 0, &wrong, 1, &self->reply));
	ASSERT_TRUE(vm_check(&self->vm));

	region.memory_size = 0;
	ASSERT_EQ(0, call_ioctl(self->vm.fd, KVM_SET_USER_MEMORY_REGION2, &region));
	own = absent(9);
	model_apply(&self->vm, &own, 1);
	ASSERT_TRUE(vm_check(&self->vm));
}
