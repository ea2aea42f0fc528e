// SPDX-License-Identifier: GPL-2.0
/* Commits while vCPUs run, sleep and are told to leave: who notices what. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/time.h>

#include "harness.h"

#define VCPUS 4
#define SPUN 32 /* pages that all vCPUs read and execute */
#define ASIDE 40 /* page of the window where slot 9 is */
#define SLEEPY 60 /* page of the window whose memory is a userfaultfd's */

FIXTURE(running) {
	struct vm vm;
	struct spinner spinners[VCPUS];
	struct memslot_commit reply;
};

FIXTURE_SETUP(running)
{
	struct memslot_entry today[4];
	unsigned int i;

	ASSERT_TRUE(vm_create(&self->vm, VCPUS, 128, POOL_SMALL_PAGES));
	self->vm.window_pages = 64;
	today[0] = vm_region(&self->vm, 1, 0, SPUN, 0);
	today[1] = in_smm(today[0]);
	today[2] = vm_region(&self->vm, 9, ASIDE, 8, 40);
	today[3] = in_smm(today[2]);
	for (i = 0; i < ARRAY_SIZE(today); i++) {
		ASSERT_EQ(0, vm_set_region(&self->vm, &today[i]));
	}
	ASSERT_TRUE(vm_bind(&self->vm));
}

FIXTURE_TEARDOWN(running)
{
	vm_destroy(&self->vm);
}

static bool start_all(FIXTURE_DATA(running) *self)
{
	unsigned int i;

	for (i = 0; i < VCPUS; i++)
		if (!spinner_start(&self->spinners[i], &self->vm, i, guest_spin, WINDOW, SPUN))
			return false;
	return true;
}

static bool all_progress(FIXTURE_DATA(running) *self)
{
	unsigned int i;

	for (i = 0; i < VCPUS; i++)
		if (!spinner_progresses(&self->spinners[i], 2))
			return false;
	return true;
}

/* Stops all, and compares memory with the model now that vCPUs are free to look. */
static bool stop_all(FIXTURE_DATA(running) *self)
{
	bool ok = true;
	unsigned int i;

	for (i = 0; i < VCPUS; i++)
		ok &= spinner_stop(&self->spinners[i]);
	return ok && vm_check(&self->vm);
}

static unsigned int interrupted(FIXTURE_DATA(running) *self)
{
	unsigned int i, sum = 0;

	for (i = 0; i < VCPUS; i++)
		sum += spinner_interrupted(&self->spinners[i]);
	return sum;
}

/* Commits and compares the report with the model's. */
static bool try_commit(FIXTURE_DATA(running) *self, __u32 flags,
		       const struct memslot_entry *entries, unsigned int count)
{
	struct expectation expectation;
	int err;

	model_expect(&self->vm, entries, count, &expectation);
	if (flags & MEMSLOT_COMMIT_PARK) {
		expectation.strategy = MEMSLOT_STRATEGY_PARK;
		expectation.park_cause = MEMSLOT_PARK_REQUESTED;
	}
	err = device_commit(self->vm.device, flags, entries, count, &self->reply);
	if (err) {
		fprintf(stderr, "# commit: %s, reason %u\n", strerror(-err), self->reply.reason);
		return false;
	}
	if (!(flags & MEMSLOT_COMMIT_TEST_ONLY))
		model_apply(&self->vm, entries, count);
	return reply_matches(&self->reply, &expectation);
}

/*
 * Four batches that lead from the first layout back to it.  They split, merge
 * and replace all memory that the vCPUs use, and leave no page without a slot.
 */
struct step {
	unsigned int count;
	struct memslot_entry entries[6];
};

static void covered_steps(const struct vm *vm, struct step steps[4])
{
	unsigned int i, n;

	steps[0] = (struct step){ 3, {
		vm_region(vm, 1, 0, 11, 0),
		vm_region(vm, 2, 11, 17, 11),
		vm_region(vm, 3, 28, 4, 28),
	} };
	steps[1] = (struct step){ 3, {
		vm_region(vm, 1, 0, 20, 64),
		vm_region(vm, 2, 20, 12, 50),
		absent(3),
	} };
	steps[2] = (struct step){ 2, {
		vm_region(vm, 1, 5, 27, 80),
		vm_region(vm, 2, 0, 5, 64),
	} };
	steps[3] = (struct step){ 2, {
		vm_region(vm, 1, 0, SPUN, 0),
		absent(2),
	} };
	/* the same for the vCPUs in SMM */
	for (i = 0; i < 4; i++) {
		for (n = 0; n < steps[i].count; n++)
			steps[i].entries[steps[i].count + n] = in_smm(steps[i].entries[n]);
		steps[i].count *= 2;
	}
}

TEST_F(running, covered_changes_disturb_nobody)
{
	struct step steps[4];
	unsigned int round, i;

	covered_steps(&self->vm, steps);
	ASSERT_TRUE(start_all(self));
	for (round = 0; round < 8; round++) {
		for (i = 0; i < 4; i++) {
			ASSERT_TRUE(try_commit(self, 0, steps[i].entries, steps[i].count));
			if (kvm_has_tdp_mmu()) {
				ASSERT_EQ(MEMSLOT_STRATEGY_FENCE, self->reply.strategy);
			}
			ASSERT_EQ(1, self->reply.grace_periods);
		}
		ASSERT_TRUE(all_progress(self));
	}
	if (kvm_has_tdp_mmu()) {
		EXPECT_EQ(0, interrupted(self));
	} else {
		EXPECT_LT(0, interrupted(self));
	}
	ASSERT_TRUE(stop_all(self));
}

/* They read and execute, so they need not notice; KVM itself refuses the change. */
TEST_F(running, toggled_readonly_disturbs_nobody)
{
	struct memslot_entry on[2], off[2];
	unsigned int i;

	off[0] = vm_region(&self->vm, 1, 0, SPUN, 0);
	off[1] = in_smm(off[0]);
	for (i = 0; i < 2; i++)
		on[i] = with_flags(off[i], MEMSLOT_ENTRY_READONLY);
	ASSERT_TRUE(start_all(self));
	for (i = 0; i < 20; i++) {
		ASSERT_TRUE(try_commit(self, 0, i % 2 ? off : on, 2));
		ASSERT_EQ(2, self->reply.replaced);
		ASSERT_EQ(2 * SPUN, self->reply.pages_kept);
		ASSERT_EQ(1, self->reply.grace_periods);
		if (i % 4 == 0) {
			ASSERT_TRUE(all_progress(self));
		}
	}
	if (kvm_has_tdp_mmu()) {
		EXPECT_EQ(0, interrupted(self));
	}
	ASSERT_TRUE(stop_all(self));
}

TEST_F(running, created_slots_disturb_nobody)
{
	const struct memslot_entry entries[] = { vm_region(&self->vm, 10, 50, 4, 100),
						 in_smm(vm_region(&self->vm, 10, 50, 4, 100)) };

	ASSERT_TRUE(start_all(self));
	ASSERT_TRUE(try_commit(self, 0, entries, 2));
	ASSERT_EQ(MEMSLOT_STRATEGY_FENCE, self->reply.strategy);
	ASSERT_TRUE(all_progress(self));
	EXPECT_EQ(0, interrupted(self));
	ASSERT_TRUE(stop_all(self));
}

TEST_F(running, requested_park_interrupts_and_lets_go)
{
	struct step steps[4];
	unsigned int round, i, n;

	covered_steps(&self->vm, steps);
	ASSERT_TRUE(start_all(self));
	for (round = 0; round < 3; round++) {
		for (i = 0; i < 4; i++) {
			unsigned int before[VCPUS];

			for (n = 0; n < VCPUS; n++)
				before[n] = spinner_interrupted(&self->spinners[n]);
			ASSERT_TRUE(try_commit(self, MEMSLOT_COMMIT_PARK, steps[i].entries,
					       steps[i].count));
			ASSERT_TRUE(all_progress(self));
			for (n = 0; n < VCPUS; n++) {
				ASSERT_LT(before[n], spinner_interrupted(&self->spinners[n]));
			}
		}
	}
	ASSERT_TRUE(stop_all(self));
}

TEST_F(running, dry_run_of_a_park_disturbs_nobody)
{
	const struct memslot_entry gone[] = { absent(9) };

	ASSERT_TRUE(start_all(self));
	ASSERT_TRUE(try_commit(self, MEMSLOT_COMMIT_PARK | MEMSLOT_COMMIT_TEST_ONLY, gone, 1));
	ASSERT_TRUE(all_progress(self));
	EXPECT_EQ(0, interrupted(self));
	ASSERT_TRUE(stop_all(self));
}

/* Nobody to park; and vCPUs that run the guest in turns with commits of one thread */
TEST_F(running, park_without_running_vcpus)
{
	struct step steps[4];
	unsigned int i;

	covered_steps(&self->vm, steps);
	for (i = 0; i < 4; i++) {
		ASSERT_TRUE(try_commit(self, MEMSLOT_COMMIT_PARK, steps[i].entries,
				       steps[i].count));
		ASSERT_TRUE(vm_check(&self->vm));
	}
}

TEST(park_without_vcpus)
{
	struct memslot_commit reply;
	struct memslot_entry entry;
	struct vm vm;

	ASSERT_TRUE(vm_create_bare(&vm, 8, POOL_SMALL_PAGES));
	vm.window_pages = 8;
	ASSERT_TRUE(vm_bind(&vm));
	entry = vm_region(&vm, 1, 0, 8, 0);
	ASSERT_EQ(0, device_commit(vm.device, MEMSLOT_COMMIT_PARK, &entry, 1, &reply));
	ASSERT_EQ(MEMSLOT_STRATEGY_PARK, reply.strategy);
	model_apply(&vm, &entry, 1);
	ASSERT_TRUE(vm_create_vcpus(&vm, 1));
	ASSERT_TRUE(vm_check(&vm));
	vm_destroy(&vm);
}

/* HLT with KVM's own interrupt controller: the vCPU sleeps inside KVM_RUN. */
TEST(park_of_a_halted_vcpu)
{
	struct memslot_entry entries[2], *last = NULL;
	unsigned int i, commits = 0;
	struct memslot_commit reply;
	struct spinner spinner;
	struct vm vm;

	ASSERT_TRUE(vm_create_bare(&vm, 16, POOL_SMALL_PAGES));
	ASSERT_EQ(0, call_ioctl(vm.fd, KVM_CREATE_IRQCHIP, NULL));
	ASSERT_TRUE(vm_create_vcpus(&vm, 1));
	vm.window_pages = 16;
	ASSERT_TRUE(vm_bind(&vm));
	entries[0] = vm_region(&vm, 1, 0, 8, 0);
	entries[1] = vm_region(&vm, 1, 0, 8, 8);
	ASSERT_EQ(0, vm_set_region(&vm, &entries[0]));

	/* It writes the first word of the window, a 1, to where rounds are counted. */
	ASSERT_TRUE(spinner_start(&spinner, &vm, 0, guest_scan, WINDOW, 1));
	usleep(50000);
	ASSERT_EQ(0, device_commit(vm.device, 0, &entries[1], 1, &reply));
	if (kvm_has_tdp_mmu()) {
		ASSERT_EQ(0, spinner_interrupted(&spinner));
	}
	for (i = 0; i < 5; i++) {
		const unsigned int before = spinner_interrupted(&spinner);
		const double end = seconds() + patience();

		/*
		 * A commit may find the thread on its way back into KVM_RUN and
		 * interrupt nobody; EINTR is seen a moment after the commit.
		 */
		while (spinner_interrupted(&spinner) == before && seconds() < end) {
			last = &entries[commits++ % 2];
			ASSERT_EQ(0, device_commit(vm.device, MEMSLOT_COMMIT_PARK, last, 1,
						   &reply));
			ASSERT_EQ(MEMSLOT_STRATEGY_PARK, reply.strategy);
			usleep(20000);
		}
		ASSERT_LT(before, spinner_interrupted(&spinner));
	}
	model_apply(&vm, last, 1);
	ASSERT_TRUE(spinner_stop(&spinner));
	vm_destroy(&vm);
}

static unsigned int alarms;

static void count_alarm(int signal)
{
	alarms++;
}

/* EINTR is for fatal signals only. */
TEST_F(running, signals_do_not_end_a_commit)
{
	const struct itimerval often = { { 0, 700 }, { 0, 700 } }, never = {};
	struct sigaction action = { .sa_handler = count_alarm };
	struct step steps[4];
	unsigned int i;

	covered_steps(&self->vm, steps);
	sigaction(SIGALRM, &action, NULL);
	ASSERT_TRUE(start_all(self));
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &often, NULL));
	for (i = 0; i < 24; i++) {
		ASSERT_TRUE(try_commit(self, i / 4 % 2 ? MEMSLOT_COMMIT_PARK : 0,
				       steps[i % 4].entries, steps[i % 4].count));
	}
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &never, NULL));
	ASSERT_LT(0, alarms);
	ASSERT_TRUE(all_progress(self));
	ASSERT_TRUE(stop_all(self));
}

/* ---- A vCPU that sleeps in a page fault ---- */

struct sleeper {
	struct vm *vm;
	int uffd;
	unsigned char *page;
	pthread_t thread;
	__u32 word;
	bool ok;
};

static void *sleep_in_a_fault(void *argument)
{
	struct sleeper *sleeper = argument;

	sleeper->ok = vm_scan(sleeper->vm, 0, WINDOW + SLEEPY * PAGE, 1, &sleeper->word);
	return NULL;
}

/* Makes vCPU 0 read a page that is not there until somebody provides it. */
static bool sleeper_start(struct sleeper *sleeper, struct vm *vm)
{
	struct memslot_entry entry;
	struct uffd_msg message;
	struct pollfd poll_uffd;

	sleeper->vm = vm;
	sleeper->uffd = page_to_come(&sleeper->page);
	if (sleeper->uffd < 0)
		return false;
	entry = vm_region(vm, 8, SLEEPY, 1, 0);
	entry.userspace_addr = (unsigned long)sleeper->page;
	if (vm_set_region(vm, &entry) ||
	    pthread_create(&sleeper->thread, NULL, sleep_in_a_fault, sleeper))
		return false;
	poll_uffd = (struct pollfd){ .fd = sleeper->uffd, .events = POLLIN };
	return poll(&poll_uffd, 1, patience() * 1000) == 1 &&
	       read(sleeper->uffd, &message, sizeof(message)) == sizeof(message) &&
	       message.event == UFFD_EVENT_PAGEFAULT;
}

/* The page comes, and is zero; the vCPU ends its read. */
static bool sleeper_wake(struct sleeper *sleeper)
{
	struct uffdio_zeropage zero = {
		.range = { .start = (unsigned long)sleeper->page, .len = PAGE },
	};

	if (ioctl(sleeper->uffd, UFFDIO_ZEROPAGE, &zero))
		return false;
	pthread_join(sleeper->thread, NULL);
	return sleeper->ok && !sleeper->word;
}

struct committer {
	const struct vm *vm;
	struct memslot_entry entry;
	__u32 flags;
	pthread_t thread;
	pid_t tid;
	struct memslot_commit reply;
	int result;
	int done;
};

static void *commit_in_a_thread(void *argument)
{
	struct committer *committer = argument;

	__atomic_store_n(&committer->tid, gettid(), __ATOMIC_SEQ_CST);
	committer->result = device_commit(committer->vm->device, committer->flags,
					  &committer->entry, 1, &committer->reply);
	__atomic_store_n(&committer->done, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/* Waits until the commit waits for something, if it does, and a moment more. */
static void let_it_wait(struct committer *committer)
{
	pid_t tid;

	do {
		usleep(1000);
		tid = __atomic_load_n(&committer->tid, __ATOMIC_SEQ_CST);
	} while (!__atomic_load_n(&committer->done, __ATOMIC_SEQ_CST) &&
		 (!tid || !thread_sleeps(tid)));
	usleep(300000);
}

/* As KVM's own ioctl does; vCPUs whose memory does not change run on meanwhile. */
TEST_F(running, fenced_commit_waits_for_a_sleeping_vcpu)
{
	struct committer committer = {
		.vm = &self->vm,
		.entry = vm_region(&self->vm, 10, 50, 4, 100),
	};
	struct sleeper sleeper;

	ASSERT_TRUE(spinner_start(&self->spinners[2], &self->vm, 2, guest_spin, WINDOW, SPUN));
	ASSERT_TRUE(sleeper_start(&sleeper, &self->vm));
	ASSERT_EQ(0, pthread_create(&committer.thread, NULL, commit_in_a_thread, &committer));
	let_it_wait(&committer);
	ASSERT_EQ(0, __atomic_load_n(&committer.done, __ATOMIC_SEQ_CST));
	ASSERT_TRUE(spinner_progresses(&self->spinners[2], 2));
	ASSERT_EQ(0, __atomic_load_n(&committer.done, __ATOMIC_SEQ_CST));

	ASSERT_TRUE(sleeper_wake(&sleeper));
	pthread_join(committer.thread, NULL);
	ASSERT_EQ(0, committer.result);
	ASSERT_EQ(MEMSLOT_STRATEGY_FENCE, committer.reply.strategy);
	ASSERT_LT(200000000, committer.reply.ns_fenced);
	model_apply(&self->vm, &committer.entry, 1);
	ASSERT_EQ(0, spinner_interrupted(&self->spinners[2]));
	ASSERT_TRUE(spinner_stop(&self->spinners[2]));
	ASSERT_TRUE(vm_check(&self->vm));
}

struct toucher {
	struct vm *vm;
	pthread_t thread;
	__u32 word;
	bool ok;
	int done;
};

static void *touch_once(void *argument)
{
	struct toucher *toucher = argument;

	toucher->ok = vm_scan(toucher->vm, 2, WINDOW + ASIDE * PAGE, 1, &toucher->word);
	__atomic_store_n(&toucher->done, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/*
 * KVM knows one invalidated range, so the fence is one: from the lowest to the highest page of
 * the batch.  Somebody asleep keeps it up, and whoever touches a page in between for the first
 * time waits, although nothing changes there.  Beyond its ends nobody does.
 */
TEST_F(running, fence_is_one_range_from_end_to_end)
{
	/* around slot 9, in guest and in host addresses */
	const struct memslot_entry below = vm_region(&self->vm, 10, ASIDE - 2, 1, 38);
	const struct memslot_entry beyond = vm_region(&self->vm, 12, 55, 1, 120);
	struct committer committer = {
		.vm = &self->vm,
		.entry = vm_region(&self->vm, 11, ASIDE + 9, 1, 49),
	};
	struct toucher toucher = { .vm = &self->vm };
	struct memslot_stage stage;
	struct sleeper sleeper;
	__u32 word;

	ASSERT_EQ(0, vm_set_region(&self->vm, &beyond));
	ASSERT_TRUE(sleeper_start(&sleeper, &self->vm));
	ASSERT_EQ(0, device_stage(self->vm.device, &below, 1, &stage));
	ASSERT_EQ(0, pthread_create(&committer.thread, NULL, commit_in_a_thread, &committer));
	let_it_wait(&committer);
	ASSERT_TRUE(vm_scan(&self->vm, 2, WINDOW + 55 * PAGE, 1, &word));
	EXPECT_EQ(121, word);
	ASSERT_EQ(0, pthread_create(&toucher.thread, NULL, touch_once, &toucher));
	usleep(300000);
	EXPECT_EQ(0, __atomic_load_n(&toucher.done, __ATOMIC_SEQ_CST));
	EXPECT_EQ(0, __atomic_load_n(&committer.done, __ATOMIC_SEQ_CST));

	ASSERT_TRUE(sleeper_wake(&sleeper));
	pthread_join(toucher.thread, NULL);
	pthread_join(committer.thread, NULL);
	EXPECT_TRUE(toucher.ok);
	EXPECT_EQ(41, toucher.word);
	ASSERT_EQ(0, committer.result);
	ASSERT_EQ(MEMSLOT_STRATEGY_FENCE, committer.reply.strategy);
	model_apply(&self->vm, &below, 1);
	model_apply(&self->vm, &committer.entry, 1);
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(running, parked_commit_does_not_wait_for_a_sleeping_vcpu)
{
	const struct memslot_entry entries[] = { vm_region(&self->vm, 10, 50, 4, 100),
						 absent(9) };
	__u64 before[MEMSLOT_MAX_ADDRESS_SPACES];
	struct memslot_stage stage;
	struct sleeper sleeper;
	double start;
	int err;

	ASSERT_TRUE(spinner_start(&self->spinners[2], &self->vm, 2, guest_spin, WINDOW, SPUN));
	ASSERT_TRUE(sleeper_start(&sleeper, &self->vm));
	ASSERT_TRUE(vm_generations(&self->vm, before));
	ASSERT_EQ(0, device_stage(self->vm.device, entries, 2, &stage));
	start = seconds();
	err = device_commit(self->vm.device, MEMSLOT_COMMIT_PARK, NULL, 0, &self->reply);
	EXPECT_GT(patience(), seconds() - start);
	if (kvm_faults_see_signals()) {
		/* It leaves KVM_RUN like any other; then it sleeps again. */
		ASSERT_EQ(0, err);
		model_apply(&self->vm, entries, 2);
	} else {
		ASSERT_EQ(-EBUSY, err);
		EXPECT_EQ(MEMSLOT_REASON_PARK_TIMEOUT, self->reply.reason);
		EXPECT_EQ(MEMSLOT_NO_ENTRY, self->reply.failed_index);
		EXPECT_EQ(before[0], self->reply.generation[0]);
		EXPECT_EQ(before[1], self->reply.generation[1]);
		EXPECT_EQ(0, self->reply.created);
	}
	/* The others run again. */
	ASSERT_TRUE(spinner_progresses(&self->spinners[2], 2));
	ASSERT_TRUE(spinner_stop(&self->spinners[2]));

	ASSERT_TRUE(sleeper_wake(&sleeper));
	ASSERT_TRUE(vm_check(&self->vm));
	if (!err)
		return;
	/* The batch is still there, and now it can be applied. */
	ASSERT_EQ(0, device_commit(self->vm.device, MEMSLOT_COMMIT_PARK, NULL, 0,
				   &self->reply));
	ASSERT_EQ(1, self->reply.created);
	ASSERT_EQ(1, self->reply.deleted);
	model_apply(&self->vm, entries, 2);
	ASSERT_TRUE(vm_check(&self->vm));
}

FIXTURE(killed) {
	int ready[2];
};

FIXTURE_VARIANT(killed) {
	__u32 flags;
};

FIXTURE_VARIANT_ADD(killed, in_a_grace_period) {
	.flags = 0,
};

FIXTURE_VARIANT_ADD(killed, while_parking) {
	.flags = MEMSLOT_COMMIT_PARK,
};

FIXTURE_SETUP(killed)
{
	ASSERT_EQ(0, pipe(self->ready));
}

FIXTURE_TEARDOWN(killed)
{
}

/* A commit that waits for a sleeping vCPU, until somebody kills it */
static int wait_to_be_killed(int ready, __u32 flags)
{
	struct committer committer = { .flags = flags };
	struct sleeper sleeper;
	struct vm vm;

	if (!vm_create(&vm, 1, 8, POOL_SMALL_PAGES) || !vm_bind(&vm) ||
	    !sleeper_start(&sleeper, &vm))
		return 1;
	committer.vm = &vm;
	committer.entry = vm_region(&vm, 1, 0, 8, 0);
	if (pthread_create(&committer.thread, NULL, commit_in_a_thread, &committer))
		return 2;
	let_it_wait(&committer);
	if (write(ready, "", 1) != 1)
		return 3;
	pause();
	return 4;
}

TEST_F(killed, process_goes_at_once)
{
	const long kvm_users = kvm_module_users(), memslot_users = memslot_module_users();
	double start;
	int status;
	pid_t child;
	char byte;

	ASSERT_LE(0, memslot_users);
	child = fork();
	ASSERT_LE(0, child);
	if (!child)
		_exit(wait_to_be_killed(self->ready[1], variant->flags));
	close(self->ready[1]);
	ASSERT_EQ(1, read(self->ready[0], &byte, 1));
	start = seconds();
	ASSERT_EQ(0, kill(child, SIGKILL));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	ASSERT_TRUE(WIFSIGNALED(status));
	EXPECT_GT(patience(), seconds() - start);
	EXPECT_EQ(kvm_users, kvm_module_users());
	EXPECT_EQ(memslot_users, memslot_module_users());
}
