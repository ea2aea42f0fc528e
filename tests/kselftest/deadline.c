// SPDX-License-Identifier: GPL-2.0
/*
 * A commit that is asked to park gives up when somebody sleeps with what it needs,
 * and changes nothing.  Who sleeps waits for a page of userfaultfd.
 */
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>

#include "harness.h"

#define PAGES 16
#define SLEEPY 20 /* gfn of the page that is not there */

struct holder {
	struct vm *vm;
	int uffd;
	unsigned char *page;
	pthread_t thread;
	int result;
};

/* With slots_lock */
static int read_dirty_log(struct holder *holder)
{
	struct kvm_dirty_log log = { .slot = 1, .dirty_bitmap = holder->page };

	return call_ioctl(holder->vm->fd, KVM_GET_DIRTY_LOG, &log);
}

/* With kvm->lock */
static int set_identity_map(struct holder *holder)
{
	return call_ioctl(holder->vm->fd, KVM_SET_IDENTITY_MAP_ADDR, holder->page);
}

/* With the file's own lock: its entries are in that page. */
static int commit(struct holder *holder)
{
	struct memslot_commit reply;

	return device_commit(holder->vm->device, 0, (struct memslot_entry *)holder->page, 1,
			     &reply);
}

/* As a reader of the slots that is no vCPU */
static int share_with_xen(struct holder *holder)
{
	struct kvm_xen_hvm_attr shared_info = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = WINDOW / PAGE + SLEEPY,
	};

	return call_ioctl(holder->vm->fd, KVM_XEN_HVM_SET_ATTR, &shared_info);
}

FIXTURE(deadline) {
	struct vm vm;
	struct spinner spinner;
	struct holder holder;
	struct memslot_commit reply;
};

FIXTURE_VARIANT(deadline) {
	int (*hold)(struct holder *holder);
	unsigned int vcpus;
	int result; /* of @hold, once the page is there, and is zero */
	bool needs_xen;
};

FIXTURE_VARIANT_ADD(deadline, slots_lock) {
	.hold = read_dirty_log,
	.vcpus = 1,
};

FIXTURE_VARIANT_ADD(deadline, kvm_lock) {
	.hold = set_identity_map,
};

FIXTURE_VARIANT_ADD(deadline, file) {
	.hold = commit,
	.vcpus = 1,
	.result = -ENOENT,
};

FIXTURE_VARIANT_ADD(deadline, reader) {
	.hold = share_with_xen,
	.vcpus = 1,
	.needs_xen = true,
};

/* Slot 1 is what commits replace, and slot 2 the page that is not there. */
static bool prepare(struct vm *vm, struct holder *holder, unsigned int vcpus)
{
	struct memslot_entry entry;

	/* KVM_SET_IDENTITY_MAP_ADDR is for a VM that has no vCPU yet. */
	if (!(vcpus ? vm_create(vm, vcpus, 2 * PAGES, POOL_SMALL_PAGES) :
		      vm_create_bare(vm, 2 * PAGES, POOL_SMALL_PAGES)))
		return false;
	entry = with_flags(vm_region(vm, 1, 0, PAGES, 0), MEMSLOT_ENTRY_LOG_DIRTY_PAGES);
	if (vm_set_region(vm, &entry))
		return false;
	holder->vm = vm;
	holder->uffd = page_to_come(&holder->page);
	if (holder->uffd < 0)
		return false;
	entry = vm_region(vm, 2, SLEEPY, 1, 0);
	entry.userspace_addr = (unsigned long)holder->page;
	return !vm_set_region(vm, &entry) && vm_bind(vm);
}

static bool has_shared_info(const struct vm *vm)
{
	const int features = ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM);

	return features > 0 && features & KVM_XEN_HVM_CONFIG_SHARED_INFO;
}

FIXTURE_SETUP(deadline)
{
	ASSERT_TRUE(prepare(&self->vm, &self->holder, variant->vcpus));
}

FIXTURE_TEARDOWN(deadline)
{
	close(self->holder.uffd);
	vm_destroy(&self->vm);
}

struct holding {
	struct holder *holder;
	int (*hold)(struct holder *holder);
};

static void *hold_in_a_thread(void *argument)
{
	struct holding *holding = argument;

	holding->holder->result = holding->hold(holding->holder);
	return NULL;
}

/* Returns when the thread sleeps. */
static bool start_holding(struct holding *holding)
{
	struct holder *holder = holding->holder;
	struct pollfd poll_uffd = { .fd = holder->uffd, .events = POLLIN };
	struct uffd_msg message;

	return !pthread_create(&holder->thread, NULL, hold_in_a_thread, holding) &&
	       poll(&poll_uffd, 1, 10000) == 1 &&
	       read(holder->uffd, &message, sizeof(message)) == sizeof(message) &&
	       message.event == UFFD_EVENT_PAGEFAULT;
}

static bool stop_holding(struct holder *holder)
{
	struct uffdio_zeropage zero = {
		.range = { .start = (unsigned long)holder->page, .len = PAGE },
	};

	return !ioctl(holder->uffd, UFFDIO_ZEROPAGE, &zero) &&
	       !pthread_join(holder->thread, NULL);
}

TEST_F(deadline, commit_gives_up)
{
	struct holding holding = { .holder = &self->holder, .hold = variant->hold };
	const struct memslot_entry entry = vm_region(&self->vm, 1, 0, PAGES, PAGES);
	__u64 before[MEMSLOT_MAX_ADDRESS_SPACES];
	double start;

	if (variant->needs_xen && !has_shared_info(&self->vm))
		SKIP(return, "this kernel has no KVM_XEN");
	if (variant->vcpus) {
		ASSERT_TRUE(spinner_start(&self->spinner, &self->vm, 0, guest_spin, WINDOW,
					  PAGES));
	}
	ASSERT_TRUE(vm_generations(&self->vm, before));
	ASSERT_TRUE(start_holding(&holding));
	start = seconds();
	ASSERT_EQ(-EBUSY, device_commit(self->vm.device, MEMSLOT_COMMIT_PARK, &entry, 1,
					&self->reply));
	/* without a deadline it would wait for ever */
	EXPECT_GT(patience(), seconds() - start);
	EXPECT_EQ(MEMSLOT_REASON_LOCKED, self->reply.reason);
	EXPECT_EQ(MEMSLOT_NO_ENTRY, self->reply.failed_index);
	EXPECT_EQ(before[0], self->reply.generation[0]);
	EXPECT_EQ(before[1], self->reply.generation[1]);
	EXPECT_EQ(0, self->reply.replaced);
	/* The old layout is there, and so are its vCPUs. */
	if (variant->vcpus) {
		ASSERT_TRUE(spinner_progresses(&self->spinner, 2));
	}

	ASSERT_TRUE(stop_holding(&self->holder));
	EXPECT_EQ(variant->result, self->holder.result);
	ASSERT_EQ(0, device_commit(self->vm.device, MEMSLOT_COMMIT_PARK, &entry, 1,
				   &self->reply));
	EXPECT_EQ(MEMSLOT_STRATEGY_PARK, self->reply.strategy);
	EXPECT_EQ(1, self->reply.replaced);
	EXPECT_EQ(1, self->reply.grace_periods);
	if (variant->vcpus) {
		ASSERT_TRUE(spinner_progresses(&self->spinner, 2));
		ASSERT_TRUE(spinner_stop(&self->spinner));
	}
}

struct prober {
	const struct vm *vm;
	pthread_t thread;
	pid_t tid;
	int done;
};

/* KVM refuses this for a VM with vCPUs, but takes kvm->lock to find out. */
static void *take_kvm_lock(void *argument)
{
	struct prober *prober = argument;
	__u64 address = 0;

	__atomic_store_n(&prober->tid, gettid(), __ATOMIC_SEQ_CST);
	call_ioctl(prober->vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &address);
	__atomic_store_n(&prober->done, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/* Does whoever sleeps hold kvm->lock?  The thread ends when that is released. */
static bool kvm_lock_is_held(struct prober *prober)
{
	unsigned int asleep = 0;

	if (pthread_create(&prober->thread, NULL, take_kvm_lock, prober))
		return false;
	while (!__atomic_load_n(&prober->done, __ATOMIC_SEQ_CST) && asleep < 20) {
		const pid_t tid = __atomic_load_n(&prober->tid, __ATOMIC_SEQ_CST);

		usleep(10000);
		asleep = tid && thread_sleeps(tid) ? asleep + 1 : 0;
	}
	return !__atomic_load_n(&prober->done, __ATOMIC_SEQ_CST);
}

/*
 * What a commit that gave up still waits for must outlive neither the VM nor the
 * module: both stay until the reader has gone.
 */
TEST(giving_up_and_closing)
{
	const long kvm_users = kvm_module_users(), memslot_users = memslot_module_users();
	const double end = seconds() + patience();
	struct memslot_commit reply;
	struct memslot_entry entry;
	struct holder holder;
	struct holding holding = { .holder = &holder, .hold = share_with_xen };
	struct vm vm;
	struct prober prober = { .vm = &vm };

	ASSERT_TRUE(prepare(&vm, &holder, 1));
	if (!has_shared_info(&vm))
		SKIP(return, "this kernel has no KVM_XEN");
	entry = vm_region(&vm, 1, 0, PAGES, PAGES);
	ASSERT_TRUE(start_holding(&holding));
	if (kvm_lock_is_held(&prober)) {
		ASSERT_TRUE(stop_holding(&holder));
		pthread_join(prober.thread, NULL);
		SKIP(return, "KVM's Xen ioctls hold kvm->lock here: no commit gets further");
	}
	pthread_join(prober.thread, NULL);
	ASSERT_EQ(-EBUSY, device_commit(vm.device, MEMSLOT_COMMIT_PARK, &entry, 1, &reply));
	ASSERT_EQ(MEMSLOT_REASON_LOCKED, reply.reason);
	ASSERT_EQ(0, close(vm.device));
	vm.device = -1;
	ASSERT_EQ(memslot_users + 1, memslot_module_users());
	ASSERT_TRUE(stop_holding(&holder));
	ASSERT_EQ(0, holder.result);
	while (memslot_module_users() != memslot_users && seconds() < end)
		usleep(1000);
	ASSERT_EQ(memslot_users, memslot_module_users());
	close(holder.uffd);
	vm_destroy(&vm);
	ASSERT_EQ(kvm_users, kvm_module_users());
}
