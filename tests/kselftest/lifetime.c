// SPDX-License-Identifier: GPL-2.0
/* Processes that die, files that go, threads that race, and nothing that leaks. */
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>

#include "harness.h"

#define LOG_DIRTY MEMSLOT_ENTRY_LOG_DIRTY_PAGES

/* ---- Processes that die ---- */

/* Bound, with a vCPU that runs; says so, and then does @work until it is killed. */
static int work_until_killed(int ready, void (*work)(struct vm *vm))
{
	struct memslot_entry today;
	struct spinner spinner;
	struct vm vm;

	if (!vm_create(&vm, 1, 64, POOL_SMALL_PAGES) || !vm_bind(&vm))
		return 1;
	today = vm_region(&vm, 1, 0, 32, 0);
	if (vm_set_region(&vm, &today) ||
	    !spinner_start(&spinner, &vm, 0, guest_spin, WINDOW, 32))
		return 2;
	if (write(ready, "", 1) != 1)
		return 3;
	for (;;)
		work(&vm);
}

static void stage_forever(struct vm *vm)
{
	struct memslot_entry entries[64];
	struct memslot_stage reply;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(entries); i++)
		entries[i] = vm_region(vm, 10 + i, i, 1, i);
	if (device_stage(vm->device, entries, ARRAY_SIZE(entries), &reply))
		device_reset(vm->device);
}

static void commit_forever(struct vm *vm)
{
	const struct memslot_entry split[] = { vm_region(vm, 1, 0, 9, 0),
					       vm_region(vm, 2, 9, 23, 9),
					       vm_region(vm, 3, 40, 8, 32) };
	const struct memslot_entry merged[] = { vm_region(vm, 1, 0, 32, 0), absent(2),
						absent(3) };
	struct memslot_commit reply;

	device_commit(vm->device, 0, split, ARRAY_SIZE(split), &reply);
	device_commit(vm->device, 0, merged, ARRAY_SIZE(merged), &reply);
}

static void park_forever(struct vm *vm)
{
	const struct memslot_entry one = vm_region(vm, 1, 0, 32, 0);
	const struct memslot_entry two = vm_region(vm, 1, 0, 32, 32);
	struct memslot_commit reply;

	device_commit(vm->device, MEMSLOT_COMMIT_PARK, &one, 1, &reply);
	device_commit(vm->device, MEMSLOT_COMMIT_PARK, &two, 1, &reply);
}

FIXTURE(killed) {
	long kvm_users;
	long memslot_users;
};

FIXTURE_VARIANT(killed) {
	void (*work)(struct vm *vm);
};

FIXTURE_VARIANT_ADD(killed, staging) {
	.work = stage_forever,
};

FIXTURE_VARIANT_ADD(killed, committing) {
	.work = commit_forever,
};

FIXTURE_VARIANT_ADD(killed, parking) {
	.work = park_forever,
};

FIXTURE_SETUP(killed)
{
	self->kvm_users = kvm_module_users();
	self->memslot_users = memslot_module_users();
	ASSERT_LE(0, self->kvm_users);
	ASSERT_LE(0, self->memslot_users);
}

FIXTURE_TEARDOWN(killed)
{
}

TEST_F(killed, leaves_nothing_behind)
{
	const struct timespec moment = { 0, 3000000 };
	struct memslot_commit reply;
	struct memslot_entry entry;
	unsigned int round, i;
	struct vm vm;

	for (round = 0; round < 6; round++) {
		int ready[2], status;
		pid_t child;
		char byte;

		ASSERT_EQ(0, pipe(ready));
		child = fork();
		ASSERT_LE(0, child);
		if (!child)
			_exit(work_until_killed(ready[1], variant->work));
		close(ready[1]);
		ASSERT_EQ(1, read(ready[0], &byte, 1));
		close(ready[0]);
		/* at another point each time */
		for (i = 0; i < round; i++)
			nanosleep(&moment, NULL);
		ASSERT_EQ(0, kill(child, SIGKILL));
		ASSERT_EQ(child, waitpid(child, &status, 0));
		ASSERT_TRUE(WIFSIGNALED(status));
		ASSERT_EQ(SIGKILL, WTERMSIG(status));
	}
	ASSERT_EQ(self->kvm_users, kvm_module_users());
	ASSERT_EQ(self->memslot_users, memslot_module_users());

	/* Everything still works. */
	ASSERT_TRUE(vm_create(&vm, 1, 8, POOL_SMALL_PAGES));
	vm.window_pages = 8;
	ASSERT_TRUE(vm_bind(&vm));
	entry = vm_region(&vm, 1, 0, 8, 0);
	ASSERT_TRUE(vm_apply(&vm, &entry, 1, &reply));
	vm_destroy(&vm);
}

/* The last file is closed by a process that never owned the VM. */
static int leave_the_device_to_a_child(int go)
{
	struct memslot_commit reply;
	struct memslot_entry entry;
	struct memslot_stage stage;
	struct vm vm;
	char byte;

	if (!vm_create(&vm, 1, 8, POOL_SMALL_PAGES) || !vm_bind(&vm))
		return 1;
	entry = vm_region(&vm, 1, 0, 8, 0);
	if (device_commit(vm.device, 0, &entry, 1, &reply))
		return 2;
	entry = vm_region(&vm, 2, 8, 4, 0);
	if (device_stage(vm.device, &entry, 1, &stage))
		return 3;
	if (fork())
		return 0;

	/* until the owner has gone */
	if (read(go, &byte, 1) != 1)
		_exit(1);
	munmap(vm.run[0], vm.run_size);
	close(vm.vcpu[0]);
	close(vm.fd);
	if (device_commit(vm.device, 0, NULL, 0, &reply) != -EIO)
		_exit(2);
	_exit(close(vm.device));
}

TEST(last_file_is_closed_by_another_process)
{
	const long users = kvm_module_users(), memslot_users = memslot_module_users();
	const double deadline = seconds() + patience();
	int go[2], status;
	pid_t child;

	ASSERT_EQ(0, pipe(go));
	child = fork();
	ASSERT_LE(0, child);
	if (!child)
		_exit(leave_the_device_to_a_child(go[0]));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	ASSERT_EQ(0, status);
	ASSERT_LT(users, kvm_module_users());
	ASSERT_LT(memslot_users, memslot_module_users());
	ASSERT_EQ(1, write(go[1], "", 1));
	while (memslot_module_users() != memslot_users && seconds() < deadline)
		usleep(1000);
	ASSERT_EQ(memslot_users, memslot_module_users());
	ASSERT_EQ(users, kvm_module_users());
}

/* ---- The module stays while it is used ---- */

static int unload(void)
{
	return syscall(SYS_delete_module, "memslot", O_NONBLOCK) ? -errno : 0;
}

TEST(unloading_is_refused_while_in_use)
{
	const long users = memslot_module_users();
	struct memslot_commit reply;
	struct memslot_entry entry;
	struct memslot_bind bind;
	struct vm vm;

	ASSERT_TRUE(vm_create(&vm, 1, 8, POOL_SMALL_PAGES));
	vm.window_pages = 8;
	vm.device = device_open();
	ASSERT_LE(0, vm.device);
	ASSERT_EQ(users + 1, memslot_module_users());
	ASSERT_EQ(-EWOULDBLOCK, unload());
	ASSERT_EQ(0, device_bind(vm.device, vm.fd, &bind));
	ASSERT_EQ(-EWOULDBLOCK, unload());
	entry = vm_region(&vm, 1, 0, 8, 0);
	ASSERT_TRUE(vm_apply(&vm, &entry, 1, &reply));
	vm_destroy(&vm);
	ASSERT_EQ(users, memslot_module_users());
}

/* ---- Nothing leaks ---- */

#define LEAK_LIMIT (24 << 10) /* KiB; each test here would leak more than twice that */

static long available_memory(void)
{
	char line[128];
	long kib = -1;
	FILE *file = fopen("/proc/meminfo", "re");

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "MemAvailable: %ld kB", &kib) == 1)
			break;
	if (file)
		fclose(file);
	return kib;
}

FIXTURE(leak) {
	struct vm vm;
	long before;
};

FIXTURE_SETUP(leak)
{
	ASSERT_TRUE(vm_create(&self->vm, 1, 8, POOL_SMALL_PAGES));
	ASSERT_TRUE(vm_bind(&self->vm));
	self->before = -1;
}

FIXTURE_TEARDOWN(leak)
{
	vm_destroy(&self->vm);
}

/* After some rounds caches are filled, and the count begins. */
static void leak_begins(FIXTURE_DATA(leak) *self, unsigned int round)
{
	if (round == 20)
		self->before = available_memory();
}

static bool leaked_nothing(FIXTURE_DATA(leak) *self)
{
	const double deadline = seconds() + patience();
	long lost;

	/* What RCU frees, it frees a little later. */
	for (;;) {
		lost = self->before - available_memory();
		if (lost < LEAK_LIMIT)
			return self->before > 0;
		if (seconds() > deadline)
			break;
		usleep(100000);
	}
	fprintf(stderr, "# %ld MiB of memory are gone\n", lost >> 10);
	return false;
}

/* 40 KiB in each batch that is left behind */
TEST_F(leak, open_bind_stage_close)
{
	const long users = kvm_module_users(), memslot_users = memslot_module_users();
	static struct memslot_entry entries[1000];
	struct memslot_stage stage;
	struct memslot_bind bind;
	unsigned int round, i;

	for (i = 0; i < ARRAY_SIZE(entries); i++)
		entries[i] = vm_region(&self->vm, 10 + i, i, 1, 0);
	for (round = 0; round < 2000; round++) {
		const int device = device_open();

		leak_begins(self, round);
		ASSERT_LE(0, device);
		ASSERT_EQ(0, device_bind(device, self->vm.fd, &bind));
		ASSERT_EQ(0, device_stage(device, entries, round % 2 ? 1000 : 500, &stage));
		ASSERT_EQ(0, close(device));
	}
	ASSERT_EQ(memslot_users, memslot_module_users());
	ASSERT_EQ(users, kvm_module_users());
	ASSERT_TRUE(leaked_nothing(self));
}

TEST_F(leak, open_bind_and_lose_the_vm)
{
	const long users = kvm_module_users();
	struct memslot_bind bind;
	unsigned int round;
	int kvm, vm_fd;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	for (round = 0; round < 100; round++) {
		const int device = device_open();

		ASSERT_LE(0, device);
		vm_fd = ioctl(kvm, KVM_CREATE_VM, 0);
		ASSERT_LE(0, vm_fd);
		ASSERT_EQ(0, device_bind(device, vm_fd, &bind));
		if (round % 2) {
			close(vm_fd);
			close(device);
		} else {
			close(device);
			close(vm_fd);
		}
	}
	close(kvm);
	ASSERT_EQ(users, kvm_module_users());
}

/* 4 GiB of memory that is not there: a bitmap of 256 KiB, for a slot that is logged */
static struct memslot_entry big_region(const struct vm *vm, __u32 slot)
{
	struct memslot_entry entry = with_flags(vm_region(vm, slot, 0, 1, 0), LOG_DIRTY);

	entry.guest_phys_addr = 1ULL << 32;
	entry.memory_size = 1ULL << 32;
	return entry;
}

TEST_F(leak, create_replace_and_delete)
{
	const struct memslot_entry big = big_region(&self->vm, 1), gone = absent(1);
	struct memslot_entry bigger = big, elsewhere = big;
	struct memslot_commit reply;
	unsigned int round;

	bigger.memory_size += 512 * PAGE;
	elsewhere.guest_phys_addr = big.guest_phys_addr * 2;
	elsewhere.memory_size = bigger.memory_size;
	for (round = 0; round < 220; round++) {
		leak_begins(self, round);
		ASSERT_EQ(0, device_commit(self->vm.device, 0, &big, 1, &reply));
		ASSERT_EQ(1, reply.created);
		ASSERT_EQ(0, device_commit(self->vm.device, 0, &bigger, 1, &reply));
		ASSERT_EQ(1, reply.replaced);
		ASSERT_EQ(0, device_commit(self->vm.device, 0, &elsewhere, 1, &reply));
		ASSERT_EQ(1, reply.moved);
		ASSERT_EQ(0, device_commit(self->vm.device, 0, &gone, 1, &reply));
		ASSERT_EQ(1, reply.deleted);
	}
	ASSERT_TRUE(leaked_nothing(self));
}

TEST_F(leak, reflag)
{
	struct memslot_entry on = big_region(&self->vm, 1), off = with_flags(on, 0);
	struct memslot_commit reply;
	unsigned int round;

	ASSERT_EQ(0, device_commit(self->vm.device, 0, &on, 1, &reply));
	for (round = 0; round < 250; round++) {
		leak_begins(self, round);
		ASSERT_EQ(0, device_commit(self->vm.device, 0, &off, 1, &reply));
		ASSERT_EQ(1, reply.reflagged);
		ASSERT_EQ(0, device_commit(self->vm.device, 0, &on, 1, &reply));
		ASSERT_EQ(1, reply.reflagged);
	}
	ASSERT_TRUE(leaked_nothing(self));
}

/* All is allocated, and given back: of a dry run, and when the last entry is refused by KVM. */
TEST_F(leak, unwound)
{
	const struct memslot_entry today[] = {
		vm_region(&self->vm, 2, 0, 4, 0),
		with_flags(vm_region(&self->vm, 3, 4, 4, 4), 0),
	};
	struct memslot_entry batch[] = {
		big_region(&self->vm, 1), /* create */
		vm_region(&self->vm, 2, 16, 4, 0), /* move */
		with_flags(vm_region(&self->vm, 3, 4, 4, 4), LOG_DIRTY), /* reflag */
		vm_region(&self->vm, 4, 0, 4, 0),
	};
	struct memslot_commit reply;
	unsigned int round;
	bool has_limit;

	/* Without nested paging a VM has 52 bits, and no address is too high for KVM alone. */
	batch[3].guest_phys_addr = (1ULL << 52) - batch[3].memory_size;
	has_limit = kvm_set_region(self->vm.fd, &batch[3]);
	if (!has_limit) {
		ASSERT_EQ(0, kvm_set_region(self->vm.fd, &(struct memslot_entry){ .slot = 4 }));
	}

	ASSERT_EQ(0, device_commit(self->vm.device, 0, today, 2, &reply));
	for (round = 0; round < 400; round++) {
		leak_begins(self, round);
		batch[3].guest_phys_addr = WINDOW;
		ASSERT_EQ(0, device_commit(self->vm.device, MEMSLOT_COMMIT_TEST_ONLY, batch, 4,
					   &reply));
		ASSERT_EQ(2, reply.created);
		if (!has_limit)
			continue;
		batch[3].guest_phys_addr = (1ULL << 52) - batch[3].memory_size;
		ASSERT_EQ(-EINVAL, device_commit(self->vm.device, 0, batch, 4, &reply));
		ASSERT_EQ(MEMSLOT_REASON_GPA_RANGE, reply.reason);
		ASSERT_EQ(3, reply.failed_index);
	}
	ASSERT_TRUE(leaked_nothing(self));
}

/* ---- Threads ---- */

#define THREADS 4
#define ROUNDS 40

/* vCPU 2 runs in slot 100 all the while, and must not notice anything. */
FIXTURE(threads) {
	struct vm vm;
	struct spinner spinner;
};

struct worker {
	struct vm *vm;
	unsigned int number;
	int device;
	__u32 flags;
	pthread_t thread;
	const struct memslot_entry *last; /* what the last commit that worked said */
	struct memslot_entry choices[4];
	unsigned int failures; /* that could not be */
	unsigned int done;
};

FIXTURE_SETUP(threads)
{
	struct memslot_entry stable;

	ASSERT_TRUE(vm_create(&self->vm, 3, 128, POOL_SMALL_PAGES));
	self->vm.window_pages = 64;
	stable = vm_region(&self->vm, 100, 56, 8, 120);
	ASSERT_EQ(0, vm_set_region(&self->vm, &stable));
	ASSERT_TRUE(vm_bind(&self->vm));
	ASSERT_TRUE(spinner_start(&self->spinner, &self->vm, 2, guest_spin, WINDOW + 56 * PAGE,
				  8));
}

FIXTURE_TEARDOWN(threads)
{
	vm_destroy(&self->vm);
}

/*
 * A slot of its own, in places that others want too: each commit works, or is
 * refused because of the place.
 */
static void *fight_for_places(void *argument)
{
	struct worker *worker = argument;
	unsigned int round;

	for (round = 0; round < ROUNDS; round++) {
		const struct memslot_entry *wanted =
			&worker->choices[(round + worker->number) % 4];
		struct memslot_commit reply;
		int err;

		err = device_commit(worker->device, worker->flags, wanted, 1, &reply);
		if (!err) {
			worker->last = wanted;
			worker->done++;
		} else if (err != -EEXIST || reply.failed_index != 0 ||
			   reply.reason != MEMSLOT_REASON_OVERLAP_SLOT) {
			fprintf(stderr, "# thread %u: %s, reason %u\n", worker->number,
				strerror(-err), reply.reason);
			worker->failures++;
		}
	}
	return NULL;
}

static bool run_workers(struct worker *workers, unsigned int count, void *(*run)(void *))
{
	bool ok = true;
	unsigned int i;

	for (i = 0; i < count; i++)
		if (pthread_create(&workers[i].thread, NULL, run, &workers[i]))
			return false;
	for (i = 0; i < count; i++) {
		pthread_join(workers[i].thread, NULL);
		ok &= !workers[i].failures;
	}
	return ok;
}

static bool layout_is_what_each_says(FIXTURE_DATA(threads) *self, const struct worker *workers)
{
	unsigned int i;

	for (i = 0; i < THREADS; i++) {
		if (!workers[i].done) {
			fprintf(stderr, "# thread %u never got a place\n", i);
			return false;
		}
		model_apply(&self->vm, workers[i].last, 1);
	}
	return spinner_stop(&self->spinner) && vm_check(&self->vm);
}

static void make_workers(FIXTURE_DATA(threads) *self, struct worker *workers)
{
	unsigned int i, n;

	for (i = 0; i < THREADS; i++) {
		workers[i] = (struct worker){
			.vm = &self->vm,
			.number = i,
			.device = self->vm.device,
		};
		for (n = 0; n < 3; n++)
			workers[i].choices[n] = vm_region(&self->vm, 1 + i, 7 * n + 3 * i, 6,
							  16 * i + 2 * n);
		/* where nobody else wants to be */
		workers[i].choices[3] = vm_region(&self->vm, 1 + i, 32 + 6 * i, 6, 16 * i);
	}
}

TEST_F(threads, on_one_file)
{
	struct worker workers[THREADS];

	make_workers(self, workers);
	ASSERT_TRUE(run_workers(workers, THREADS, fight_for_places));
	ASSERT_TRUE(layout_is_what_each_says(self, workers));
}

TEST_F(threads, on_a_file_each)
{
	struct worker workers[THREADS];
	struct memslot_bind reply;
	unsigned int i;

	make_workers(self, workers);
	for (i = 0; i < THREADS; i++) {
		workers[i].device = device_open();
		ASSERT_LE(0, workers[i].device);
		ASSERT_EQ(0, device_bind(workers[i].device, self->vm.fd, &reply));
	}
	ASSERT_TRUE(run_workers(workers, THREADS, fight_for_places));
	ASSERT_TRUE(layout_is_what_each_says(self, workers));
	for (i = 0; i < THREADS; i++)
		close(workers[i].device);
}

TEST_F(threads, some_park)
{
	struct worker workers[THREADS];
	struct memslot_bind reply;
	unsigned int i;

	make_workers(self, workers);
	for (i = 0; i < THREADS; i++) {
		workers[i].device = device_open();
		workers[i].flags = i % 2 ? MEMSLOT_COMMIT_PARK : 0;
		ASSERT_LE(0, workers[i].device);
		ASSERT_EQ(0, device_bind(workers[i].device, self->vm.fd, &reply));
	}
	ASSERT_TRUE(run_workers(workers, THREADS, fight_for_places));
	ASSERT_TRUE(layout_is_what_each_says(self, workers));
	for (i = 0; i < THREADS; i++)
		close(workers[i].device);
}

/* Slots 1 and 2 for all: each commit takes both at once. */
static void *fight_for_slots(void *argument)
{
	struct worker *worker = argument;
	unsigned int round;

	for (round = 0; round < ROUNDS; round++) {
		struct memslot_commit reply;

		if (device_commit(worker->device, worker->flags, worker->choices, 2, &reply))
			worker->failures++;
	}
	return NULL;
}

/* Is this slot as the entry says?  Then to commit it would be no work. */
static bool slot_is(const struct vm *vm, const struct memslot_entry *entry)
{
	struct memslot_commit reply;
	int err;

	err = device_commit(vm->device, MEMSLOT_COMMIT_TEST_ONLY, entry, 1, &reply);
	if (!entry->memory_size)
		return err == -ENOENT;
	return !err && reply.strategy == MEMSLOT_STRATEGY_NONE;
}

TEST_F(threads, whole_batches_win)
{
	struct worker workers[THREADS];
	unsigned int i, winners = 0, winner = 0;

	make_workers(self, workers);
	for (i = 0; i < THREADS; i++) {
		/* sizes, places and memory of its own; the two take turns at the front */
		workers[i].choices[0] = vm_region(&self->vm, 1, i % 2 ? 24 : 2 * i, 4 + i, i);
		workers[i].choices[1] = vm_region(&self->vm, 2, i % 2 ? i : 24, 8 + i, 60 + i);
	}
	ASSERT_TRUE(run_workers(workers, THREADS, fight_for_slots));
	for (i = 0; i < THREADS; i++) {
		const bool first = slot_is(&self->vm, &workers[i].choices[0]);

		ASSERT_EQ(first, slot_is(&self->vm, &workers[i].choices[1]));
		if (first) {
			winners++;
			winner = i;
		}
	}
	ASSERT_EQ(1, winners);
	model_apply(&self->vm, workers[winner].choices, 2);
	ASSERT_TRUE(spinner_stop(&self->spinner));
	ASSERT_TRUE(vm_check(&self->vm));
}

/* The same slot 1 by KVM's own ioctl, which can create only what is not there */
static void *fight_by_kvm(void *argument)
{
	struct worker *worker = argument;
	unsigned int round;
	int err;

	for (round = 0; round < ROUNDS; round++) {
		err = kvm_set_region(worker->vm->fd, &worker->choices[round % 2]);
		if (!err)
			worker->done++;
		else if (err != -EINVAL && err != -EEXIST)
			worker->failures++;
	}
	return NULL;
}

static void *fight(void *argument)
{
	struct worker *worker = argument;

	return worker->number ? fight_for_slots(worker) : fight_by_kvm(worker);
}

TEST_F(threads, against_kvms_own_ioctl)
{
	struct worker workers[THREADS];
	const struct memslot_entry *slots[2] = {};
	unsigned int i, n;

	make_workers(self, workers);
	/* The first thread deletes slot 1, and creates it where the others have none. */
	workers[0].choices[0] = absent(1);
	workers[0].choices[1] = vm_region(&self->vm, 1, 44, 5, 100);
	for (i = 1; i < THREADS; i++) {
		workers[i].choices[0] = vm_region(&self->vm, 1, 2 * i, 4 + i, i);
		workers[i].choices[1] = vm_region(&self->vm, 2, 20 + i, 8 + i, 60 + i);
	}
	ASSERT_TRUE(run_workers(workers, THREADS, fight));
	/* KVM's part took place. */
	ASSERT_LT(0, workers[0].done);

	/* Slot 1 is somebody's, or gone; slot 2 is one of ours. */
	for (i = 0; i < THREADS; i++) {
		for (n = 0; n < 2; n++) {
			const struct memslot_entry *entry = &workers[i].choices[n];

			if (slot_is(&self->vm, entry)) {
				ASSERT_EQ(NULL, slots[entry->slot - 1]);
				slots[entry->slot - 1] = entry;
			}
		}
	}
	ASSERT_NE(NULL, slots[0]);
	ASSERT_NE(NULL, slots[1]);
	model_apply(&self->vm, slots[0], 1);
	model_apply(&self->vm, slots[1], 1);
	ASSERT_TRUE(spinner_stop(&self->spinner));
	ASSERT_TRUE(vm_check(&self->vm));
}

/* One file's batch, filled, emptied and committed by all at once */
static void *use_one_batch(void *argument)
{
	struct worker *worker = argument;
	unsigned int round;

	for (round = 0; round < ROUNDS; round++) {
		struct memslot_stage stage;
		struct memslot_commit commit;
		int err;

		err = device_stage(worker->device, &worker->choices[round % 2], 1, &stage);
		if (err)
			worker->failures++;
		if (worker->number == 0 && round % 8 == 0 && device_reset(worker->device))
			worker->failures++;
		err = device_commit(worker->device, 0, NULL, 0, &commit);
		/* Somebody staged the same slot again before this commit. */
		if (err == -EINVAL && commit.reason == MEMSLOT_REASON_DUPLICATE)
			device_reset(worker->device);
		else if (err)
			worker->failures++;
	}
	return NULL;
}

TEST_F(threads, share_a_batch)
{
	struct worker workers[THREADS];
	unsigned int i, n;

	make_workers(self, workers);
	for (i = 0; i < THREADS; i++)
		for (n = 0; n < 2; n++)
			workers[i].choices[n] = vm_region(&self->vm, 1 + i, 8 * i, 4 + n, 8 * i);
	ASSERT_TRUE(run_workers(workers, THREADS, use_one_batch));
	ASSERT_EQ(0, device_reset(self->vm.device));
	/* Each slot is as its thread wanted it once, or not there. */
	for (i = 0; i < THREADS; i++)
		for (n = 0; n < 2; n++)
			if (slot_is(&self->vm, &workers[i].choices[n]))
				model_apply(&self->vm, &workers[i].choices[n], 1);
	ASSERT_TRUE(spinner_stop(&self->spinner));
	ASSERT_TRUE(vm_check(&self->vm));
}
