// SPDX-License-Identifier: GPL-2.0
/* vCPUs that come and go, and that never leave the emulator, during commits. */
#include <sys/mman.h>

#include "harness.h"

#define PAGES 16 /* that all vCPUs use */
#define EMULATING 3

FIXTURE(vcpus) {
	struct vm vm;
	struct memslot_entry layouts[2][4];
	struct spinner spinners[4];
};

FIXTURE_VARIANT(vcpus) {
	__u32 flags;
};

FIXTURE_VARIANT_ADD(vcpus, fenced) {
	.flags = 0,
};

FIXTURE_VARIANT_ADD(vcpus, parked) {
	.flags = MEMSLOT_COMMIT_PARK,
};

/* Two layouts that map the same gfns, to other memory: the one splits what the other merges. */
FIXTURE_SETUP(vcpus)
{
	struct memslot_entry *one = self->layouts[0], *other = self->layouts[1];
	unsigned int i;

	ASSERT_TRUE(vm_create_bare(&self->vm, 3 * PAGES, POOL_SMALL_PAGES));
	self->vm.window_pages = PAGES;
	one[0] = vm_region(&self->vm, 1, 0, PAGES, 0);
	one[1] = absent(2);
	other[0] = vm_region(&self->vm, 1, 0, 5, PAGES);
	other[1] = vm_region(&self->vm, 2, 5, PAGES - 5, 2 * PAGES);
	for (i = 0; i < 2; i++) {
		one[2 + i] = in_smm(one[i]);
		other[2 + i] = in_smm(other[i]);
	}
	ASSERT_EQ(0, vm_set_region(&self->vm, &one[0]));
	ASSERT_EQ(0, vm_set_region(&self->vm, &one[2]));
	ASSERT_TRUE(vm_bind(&self->vm));
}

FIXTURE_TEARDOWN(vcpus)
{
	vm_destroy(&self->vm);
}

struct changer {
	FIXTURE_DATA(vcpus) *fixture;
	__u32 flags;
	pthread_t thread;
	int stop;
	int error;
	unsigned int commits;
};

/* From one layout to the other and back, until it is told to stop. */
static void *change_layout(void *argument)
{
	struct changer *changer = argument;
	struct memslot_commit reply;

	while (!changer->error && (!__atomic_load_n(&changer->stop, __ATOMIC_SEQ_CST) ||
				   changer->commits % 2)) {
		changer->error = device_commit(changer->fixture->vm.device, changer->flags,
					       changer->fixture->layouts[1 - changer->commits % 2],
					       4, &reply);
		if (changer->flags & MEMSLOT_COMMIT_PARK ?
			    reply.strategy != MEMSLOT_STRATEGY_PARK :
			    kvm_has_tdp_mmu() && reply.strategy != MEMSLOT_STRATEGY_FENCE)
			changer->error = -EPROTO;
		changer->commits++;
		usleep(200);
	}
	return NULL;
}

static bool start_changes(struct changer *changer, FIXTURE_DATA(vcpus) *fixture, __u32 flags)
{
	*changer = (struct changer){ .fixture = fixture, .flags = flags };
	return !pthread_create(&changer->thread, NULL, change_layout, changer);
}

static bool stop_changes(struct changer *changer)
{
	__atomic_store_n(&changer->stop, 1, __ATOMIC_SEQ_CST);
	pthread_join(changer->thread, NULL);
	if (changer->error)
		fprintf(stderr, "# commit %u: %s\n", changer->commits, strerror(-changer->error));
	return !changer->error && changer->commits;
}

/*
 * A vCPU that is closed stays with its VM until that ends, and so do its roots.
 * With npt=0 they would use up the few shadow pages that so small a VM may have.
 */
TEST_F(vcpus, come_and_go)
{
	struct spinner *spinner = self->spinners;
	struct changer changer;
	unsigned int i;

	ASSERT_EQ(0, ioctl(self->vm.fd, KVM_SET_NR_MMU_PAGES, 1024));
	ASSERT_TRUE(start_changes(&changer, self, variant->flags));
	for (i = 0; i < 24; i++) {
		ASSERT_TRUE(vm_create_vcpus(&self->vm, 1));
		ASSERT_TRUE(spinner_start(spinner, &self->vm, i, guest_spin, WINDOW, PAGES));
		ASSERT_TRUE(spinner_progresses(spinner, 4));
		ASSERT_TRUE(spinner_stop(spinner));
		if (i > 1) {
			ASSERT_EQ(0, close(self->vm.vcpu[i]));
			self->vm.vcpu[i] = -1;
		}
	}
	ASSERT_TRUE(stop_changes(&changer));
	ASSERT_TRUE(vm_check(&self->vm));
}

/* All that is left of the VM is what the device holds. */
TEST_F(vcpus, go_during_commits)
{
	struct changer changer;
	unsigned int i, before;

	ASSERT_TRUE(vm_create_vcpus(&self->vm, 4));
	for (i = 0; i < 4; i++) {
		ASSERT_TRUE(spinner_start(&self->spinners[i], &self->vm, i, guest_spin, WINDOW,
					  PAGES));
	}
	ASSERT_TRUE(start_changes(&changer, self, variant->flags));
	for (i = 0; i < 4; i++) {
		ASSERT_TRUE(spinner_progresses(&self->spinners[i], 4));
		ASSERT_TRUE(spinner_stop(&self->spinners[i]));
		ASSERT_EQ(0, munmap(self->vm.run[i], self->vm.run_size));
		ASSERT_EQ(0, close(self->vm.vcpu[i]));
	}
	self->vm.vcpus = 0;
	ASSERT_EQ(0, close(self->vm.fd));
	self->vm.fd = -1;
	before = __atomic_load_n(&changer.commits, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&changer.commits, __ATOMIC_SEQ_CST) < before + 4 &&
	       !__atomic_load_n(&changer.error, __ATOMIC_SEQ_CST))
		usleep(1000);
	ASSERT_TRUE(stop_changes(&changer));
}

/* Each access is one of KVM's own; the vCPUs never leave KVM_RUN by themselves. */
TEST_F(vcpus, live_in_the_emulator)
{
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct changer changer;
	unsigned int i, n;

	ASSERT_EQ(0, call_ioctl(self->vm.fd, KVM_CREATE_IRQCHIP, NULL));
	ASSERT_TRUE(vm_create_vcpus(&self->vm, EMULATING));
	for (i = 0; i < EMULATING; i++) {
		ASSERT_EQ(0, call_ioctl(self->vm.vcpu[i], KVM_SET_MP_STATE, &runnable));
		ASSERT_TRUE(spinner_start(&self->spinners[i], &self->vm, i, guest_emulate, WINDOW,
					  PAGES));
	}
	ASSERT_TRUE(start_changes(&changer, self, variant->flags));
	for (n = 0; n < 10 || __atomic_load_n(&changer.commits, __ATOMIC_SEQ_CST) <= 10; n++) {
		for (i = 0; i < EMULATING; i++) {
			ASSERT_TRUE(spinner_progresses(&self->spinners[i], 8));
		}
	}
	ASSERT_TRUE(stop_changes(&changer));
	ASSERT_LT(10, changer.commits);
	for (i = 0; i < EMULATING; i++) {
		if (!(variant->flags & MEMSLOT_COMMIT_PARK) && kvm_has_tdp_mmu()) {
			EXPECT_EQ(0, spinner_interrupted(&self->spinners[i]));
		}
		ASSERT_TRUE(spinner_stop(&self->spinners[i]));
	}
}
