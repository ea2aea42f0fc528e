// SPDX-License-Identifier: GPL-2.0
/* What the layout is, commits that depend on it, and layouts that are replaced as a whole. */
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "harness.h"

#define PAGES 64
#define MAX_SLOTS 32

FIXTURE(query) {
	struct vm vm;
	struct memslot_entry slots[MAX_SLOTS];
	struct memslot_query reply;
};

/* Slots 1, 7 and 3 in this order of addresses, and two in SMM. */
FIXTURE_SETUP(query)
{
	struct memslot_entry today[5];
	unsigned int i;

	ASSERT_TRUE(vm_create(&self->vm, 2, 2 * PAGES, POOL_SMALL_PAGES));
	self->vm.window_pages = PAGES;
	today[0] = with_flags(vm_region(&self->vm, 3, 40, 8, 0), MEMSLOT_ENTRY_READONLY);
	today[1] = vm_region(&self->vm, 1, 0, 16, 16);
	today[2] = with_flags(vm_region(&self->vm, 7, 16, 4, 60), MEMSLOT_ENTRY_LOG_DIRTY_PAGES);
	today[3] = in_smm(vm_region(&self->vm, 1, 20, 4, 0));
	today[4] = in_smm(vm_region(&self->vm, 2, 24, 4, 40));
	for (i = 0; i < ARRAY_SIZE(today); i++)
		ASSERT_EQ(0, vm_set_region(&self->vm, &today[i]));
	ASSERT_TRUE(vm_bind(&self->vm));
}

FIXTURE_TEARDOWN(query)
{
	vm_destroy(&self->vm);
}

static int query(FIXTURE_DATA(query) *self, __u32 address_space)
{
	return device_query(self->vm.device, address_space, self->slots, MAX_SLOTS, &self->reply);
}

/* Is the answer the model's layout of the address space, sorted, and nothing else? */
static bool is_the_model(const struct vm *vm, __u32 address_space,
			 const struct memslot_entry *slots, const struct memslot_query *reply,
			 bool owner)
{
	unsigned int i, expected = 0;

	for (i = 0; i < vm->nr_slots; i++)
		expected += vm->slots[i].address_space == address_space;
	if (reply->count != expected || reply->reason != MEMSLOT_REASON_NONE) {
		fprintf(stderr, "# %u slots, not %u; reason %u\n", reply->count, expected,
			reply->reason);
		return false;
	}
	for (i = 0; i < reply->count; i++) {
		const struct memslot_entry *slot = model_find(vm, address_space, slots[i].slot);
		struct memslot_entry wanted;

		if (!slot) {
			fprintf(stderr, "# there is no slot %u\n", slots[i].slot);
			return false;
		}
		wanted = *slot;
		if (!owner)
			wanted.userspace_addr = 0;
		if (memcmp(&wanted, &slots[i], sizeof(wanted)) ||
		    (i && slots[i - 1].guest_phys_addr >= slots[i].guest_phys_addr)) {
			fprintf(stderr, "# slot %u is wrong, or not in order\n", slots[i].slot);
			return false;
		}
	}
	return true;
}

TEST_F(query, tells_the_layout)
{
	const struct memslot_entry batch[] = { vm_region(&self->vm, 5, 50, 4, 100), absent(7),
					       in_smm(vm_region(&self->vm, 9, 0, 3, 3)) };
	struct memslot_commit commit;

	ASSERT_EQ(0, query(self, 0));
	ASSERT_TRUE(is_the_model(&self->vm, 0, self->slots, &self->reply, true));
	ASSERT_EQ(0, query(self, 1));
	ASSERT_TRUE(is_the_model(&self->vm, 1, self->slots, &self->reply, true));

	ASSERT_TRUE(vm_apply(&self->vm, batch, 3, &commit));
	ASSERT_EQ(0, query(self, 0));
	ASSERT_TRUE(is_the_model(&self->vm, 0, self->slots, &self->reply, true));
	ASSERT_EQ(commit.generation[0], self->reply.generation);
	ASSERT_EQ(0, query(self, 1));
	ASSERT_TRUE(is_the_model(&self->vm, 1, self->slots, &self->reply, true));
	ASSERT_EQ(commit.generation[1], self->reply.generation);
}

TEST_F(query, answer_can_be_committed_as_it_is)
{
	struct memslot_commit commit;

	ASSERT_EQ(0, query(self, 0));
	ASSERT_EQ(0, device_commit(self->vm.device, 0, self->slots, self->reply.count, &commit));
	ASSERT_EQ(MEMSLOT_STRATEGY_NONE, commit.strategy);
	ASSERT_EQ(0, commit.grace_periods);
	ASSERT_EQ(self->reply.generation, commit.generation[0]);
}

TEST_F(query, too_little_room)
{
	struct memslot_entry untouched;
	unsigned int room;

	memset(&untouched, 0xa5, sizeof(untouched)); /* as device_query() fills them */
	for (room = 0; room < 4; room++) {
		ASSERT_EQ(-ENOSPC, device_query(self->vm.device, 0, self->slots, room,
						&self->reply));
		ASSERT_EQ(MEMSLOT_REASON_NO_ROOM, self->reply.reason);
		ASSERT_EQ(4, self->reply.count);
		ASSERT_NE(0, self->reply.generation);
		if (room)
			ASSERT_EQ(0, memcmp(self->slots, &untouched, sizeof(untouched)));
	}
	ASSERT_EQ(0, device_query(self->vm.device, 0, self->slots, 4, &self->reply));
	ASSERT_TRUE(is_the_model(&self->vm, 0, self->slots, &self->reply, true));
}

TEST_F(query, address_space_that_is_not)
{
	const __u32 spaces[] = { 2, 3, 0x80000000, 0xffffffff };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(spaces); i++) {
		ASSERT_EQ(-EINVAL, query(self, spaces[i]));
		ASSERT_EQ(MEMSLOT_REASON_ADDRESS_SPACE, self->reply.reason);
	}
}

static int query_array(FIXTURE_DATA(query) *self, void *array, __u32 count, __u32 entry_size)
{
	self->reply = (struct memslot_query){
		.size = sizeof(self->reply),
		.entries = (unsigned long)array,
		.count = count,
		.entry_size = entry_size,
	};
	return call_ioctl(self->vm.device, MEMSLOT_IOC_QUERY, &self->reply);
}

TEST_F(query, elements_of_other_sizes)
{
	const __u32 sizes[] = { ENTRY_FIRST_SIZE, sizeof(struct memslot_entry) - 8,
				sizeof(struct memslot_entry), sizeof(struct memslot_entry) + 8,
				200, PAGE };
	const __u32 bad[] = { 0, 1, ENTRY_FIRST_SIZE - 1 };
	const size_t room = (MAX_SLOTS + 1) * PAGE;
	unsigned char *array;
	unsigned int i, n;
	size_t byte;

	array = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, array);
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		const __u32 known = sizes[i] < sizeof(self->slots[0]) ? sizes[i] :
									  sizeof(self->slots[0]);

		ASSERT_EQ(0, query(self, 0));
		memset(array, 0xa5, room);
		ASSERT_EQ(0, query_array(self, array, MAX_SLOTS, sizes[i]));
		ASSERT_EQ(4, self->reply.count);
		for (n = 0; n < 4; n++) {
			const unsigned char *element = array + n * sizes[i];

			ASSERT_EQ(0, memcmp(element, &self->slots[n], known));
			for (byte = known; byte < sizes[i]; byte++)
				ASSERT_EQ(0, element[byte]);
		}
		for (byte = 4 * sizes[i]; byte < room; byte++)
			ASSERT_EQ(0xa5, array[byte]);
	}
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		ASSERT_EQ(-EINVAL, query_array(self, array, 4, bad[i]));
		ASSERT_EQ(MEMSLOT_REASON_ARGUMENT, self->reply.reason);
	}
	ASSERT_EQ(-E2BIG, query_array(self, array, 4, PAGE + 1));
	ASSERT_EQ(MEMSLOT_REASON_ARGUMENT, self->reply.reason);
	munmap(array, room);
}

TEST_F(query, array_cannot_be_written)
{
	unsigned char *array = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const __u32 size = sizeof(struct memslot_entry);

	ASSERT_NE(MAP_FAILED, array);
	ASSERT_EQ(0, mprotect(array + PAGE, PAGE, PROT_READ));
	ASSERT_EQ(0, query_array(self, array + PAGE - 4 * size, 4, size));
	ASSERT_EQ(-EFAULT, query_array(self, array + PAGE - 4 * size + 8, 4, size));
	ASSERT_EQ(-EFAULT, query_array(self, array + PAGE - 3 * 2 * size, 4, 2 * size));
	ASSERT_EQ(-EFAULT, query_array(self, NULL, 4, size));
	/* More than all slots that can be is no more than that. */
	ASSERT_EQ(0, query_array(self, array, 0xffffffff, size));
	munmap(array, 2 * PAGE);
}

/* ---- Who may ask ---- */

TEST_F(query, unbound_file)
{
	const int device = device_open();

	ASSERT_LE(0, device);
	ASSERT_EQ(-ENOTCONN, device_query(device, 0, self->slots, MAX_SLOTS, &self->reply));
	ASSERT_EQ(MEMSLOT_REASON_NOT_BOUND, self->reply.reason);
	close(device);
}

static int bind_for_queries(int device, int vm_fd)
{
	struct memslot_bind bind = {
		.size = sizeof(bind),
		.flags = MEMSLOT_BIND_QUERY_ONLY,
		.vm_fd = vm_fd,
	};
	int err = call_ioctl(device, MEMSLOT_IOC_BIND, &bind);

	if (!err && bind.address_spaces != MEMSLOT_MAX_ADDRESS_SPACES)
		return -ERANGE;
	return err;
}

/* A file that may only ask cannot do anything else. */
static bool may_only_ask(struct vm *vm, int device)
{
	const struct memslot_entry entry = vm_region(vm, 20, 60, 4, 0);
	struct memslot_commit commit;
	struct memslot_stage stage;

	return device_stage(device, &entry, 1, &stage) == -EACCES &&
	       stage.reason == MEMSLOT_REASON_QUERY_ONLY &&
	       device_commit(device, 0, &entry, 1, &commit) == -EACCES &&
	       commit.reason == MEMSLOT_REASON_QUERY_ONLY && !commit.generation[0] &&
	       device_commit(device, MEMSLOT_COMMIT_TEST_ONLY, &entry, 1, &commit) == -EACCES &&
	       device_reset(device) == -EACCES;
}

TEST_F(query, only)
{
	const int device = device_open();

	ASSERT_LE(0, device);
	ASSERT_EQ(0, bind_for_queries(device, self->vm.fd));
	ASSERT_EQ(-EBUSY, bind_for_queries(device, self->vm.fd));
	ASSERT_EQ(0, device_query(device, 0, self->slots, MAX_SLOTS, &self->reply));
	ASSERT_TRUE(is_the_model(&self->vm, 0, self->slots, &self->reply, true));
	ASSERT_TRUE(may_only_ask(&self->vm, device));
	ASSERT_TRUE(vm_check(&self->vm));
	close(device);
}

/* In another process: who has the VM's file may ask, and does not see addresses of the owner. */
static bool child_may_only_ask(FIXTURE_DATA(query) *self)
{
	struct memslot_bind bind;
	const int device = device_open();
	__u32 as;

	if (device < 0 || device_bind(device, self->vm.fd, &bind) != -EIO ||
	    bind_for_queries(device, self->vm.fd))
		return false;
	for (as = 0; as < 2; as++)
		if (device_query(device, as, self->slots, MAX_SLOTS, &self->reply) ||
		    !is_the_model(&self->vm, as, self->slots, &self->reply, false))
			return false;
	/* The same through the file that its parent bound. */
	if (query(self, 0) || !is_the_model(&self->vm, 0, self->slots, &self->reply, false))
		return false;
	return may_only_ask(&self->vm, device);
}

TEST_F(query, by_another_process)
{
	int status;
	pid_t child;

	child = fork();
	if (!child)
		_exit(child_may_only_ask(self) ? 0 : 1);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	ASSERT_EQ(0, status);
	ASSERT_TRUE(vm_check(&self->vm));
}

/* ---- While others change it ---- */

struct changer {
	struct vm *vm;
	struct memslot_entry layouts[2][3];
	int stop;
	int failed;
	unsigned int rounds;
};

static void *change(void *argument)
{
	struct changer *changer = argument;
	const int device = device_open();
	struct memslot_commit commit;
	struct memslot_bind bind;

	if (device < 0 || device_bind(device, changer->vm->fd, &bind))
		changer->failed = 1;
	while (!changer->failed && !__atomic_load_n(&changer->stop, __ATOMIC_SEQ_CST)) {
		const struct memslot_entry *next = changer->layouts[(changer->rounds + 1) % 2];

		if (device_commit(device, 0, next, 3, &commit))
			changer->failed = 1;
		__atomic_add_fetch(&changer->rounds, 1, __ATOMIC_SEQ_CST);
	}
	close(device);
	return NULL;
}

/* Slot 1 whole, or in three parts */
static void two_layouts(struct vm *vm, struct changer *changer)
{
	changer->vm = vm;
	changer->layouts[0][0] = vm_region(vm, 1, 0, 16, 16);
	changer->layouts[0][1] = vm_region(vm, 20, 50, 2, 0);
	changer->layouts[0][2] = vm_region(vm, 21, 52, 2, 2);
	changer->layouts[1][0] = vm_region(vm, 1, 0, 4, 16);
	changer->layouts[1][1] = vm_region(vm, 20, 4, 6, 20);
	changer->layouts[1][2] = vm_region(vm, 21, 10, 6, 26);
}

TEST_F(query, is_whole_while_another_thread_changes)
{
	struct changer changer = {};
	unsigned int i, which, seen[2] = {};
	__u64 last_generation = 0;
	pthread_t thread;

	two_layouts(&self->vm, &changer);
	for (i = 0; i < 3; i++)
		ASSERT_EQ(0, vm_set_region(&self->vm, &changer.layouts[0][i]));
	ASSERT_EQ(0, pthread_create(&thread, NULL, change, &changer));
	/* enough changes that some are caught half done, and each layout often */
	while (__atomic_load_n(&changer.rounds, __ATOMIC_SEQ_CST) < 500 || seen[0] <= 10 ||
	       seen[1] <= 10) {
		ASSERT_EQ(0, __atomic_load_n(&changer.failed, __ATOMIC_SEQ_CST));
		ASSERT_EQ(0, query(self, 0));
		ASSERT_LE(last_generation, self->reply.generation);
		last_generation = self->reply.generation;
		which = self->slots[1].memory_size != 16 * PAGE;
		model_apply(&self->vm, changer.layouts[which], 3);
		ASSERT_TRUE(is_the_model(&self->vm, 0, self->slots, &self->reply, true));
		seen[which]++;
	}
	__atomic_store_n(&changer.stop, 1, __ATOMIC_SEQ_CST);
	pthread_join(thread, NULL);
	ASSERT_EQ(0, changer.failed);
}

/* ---- KVM's own ioctl, which publishes twice to delete or move a slot ---- */

#define KVM_ROUNDS 300 /* each has two layouts that must not be told */

struct kvm_changer {
	struct vm *vm;
	struct memslot_entry here, there;
	int stop;
	int failed;
	unsigned int rounds;
};

/* Creates a slot, moves it and deletes it again. */
static int kvm_round(struct kvm_changer *changer)
{
	const struct memslot_entry gone = absent(changer->here.slot);
	int err;

	err = kvm_set_region(changer->vm->fd, &changer->here);
	err = err ? err : kvm_set_region(changer->vm->fd, &changer->there);
	return err ? err : kvm_set_region(changer->vm->fd, &gone);
}

static void *change_by_kvm(void *argument)
{
	struct kvm_changer *changer = argument;

	while (!changer->failed && !__atomic_load_n(&changer->stop, __ATOMIC_SEQ_CST)) {
		changer->failed = kvm_round(changer);
		__atomic_fetch_add(&changer->rounds, 1, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

/* Which of these is slot 5 in the answer? */
static int state_of_slot_5(FIXTURE_DATA(query) *self, const struct kvm_changer *changer)
{
	unsigned int i;

	for (i = 0; i < self->reply.count; i++) {
		if (self->slots[i].slot != 5)
			continue;
		if (self->slots[i].guest_phys_addr == changer->here.guest_phys_addr)
			return 1;
		return 2;
	}
	return 0;
}

/*
 * Of each generation it is known what the layout is: in a round KVM publishes five
 * times, and the second and the fourth time with a slot that is marked invalid.
 */
TEST_F(query, tells_nothing_that_kvm_has_half_done)
{
	static const int expected[] = { 0, 1, -1, 2, -1 };
	struct kvm_changer changer = {
		.vm = &self->vm,
		.here = vm_region(&self->vm, 5, 50, 4, 100),
		.there = vm_region(&self->vm, 5, 56, 4, 100),
	};
	unsigned int seen[3] = {};
	__u64 first, step, turn;
	pthread_t thread;

	ASSERT_EQ(0, query(self, 0));
	first = self->reply.generation;
	ASSERT_EQ(0, kvm_set_region(self->vm.fd, &changer.here));
	ASSERT_EQ(0, query(self, 0));
	step = self->reply.generation - first;
	ASSERT_LT(0, step);
	ASSERT_EQ(0, kvm_set_region(self->vm.fd, &changer.there));
	ASSERT_EQ(0, query(self, 0));
	ASSERT_EQ(first + 3 * step, self->reply.generation);
	ASSERT_EQ(0, kvm_set_region(self->vm.fd, &(struct memslot_entry){ .slot = 5 }));
	ASSERT_EQ(0, query(self, 0));
	ASSERT_EQ(first + 5 * step, self->reply.generation);

	ASSERT_EQ(0, pthread_create(&thread, NULL, change_by_kvm, &changer));
	while (__atomic_load_n(&changer.rounds, __ATOMIC_SEQ_CST) < KVM_ROUNDS || !seen[0] ||
	       !seen[1] || !seen[2]) {
		ASSERT_EQ(0, __atomic_load_n(&changer.failed, __ATOMIC_SEQ_CST));
		ASSERT_EQ(0, query(self, 0));
		ASSERT_EQ(0, (self->reply.generation - first) % step);
		turn = (self->reply.generation - first) / step % ARRAY_SIZE(expected);
		ASSERT_EQ(expected[turn], state_of_slot_5(self, &changer));
		seen[expected[turn]]++;
	}
	__atomic_store_n(&changer.stop, 1, __ATOMIC_SEQ_CST);
	pthread_join(thread, NULL);
	ASSERT_EQ(0, changer.failed);
}

/* ---- Commits that depend on what was seen ---- */

static int commit_if(FIXTURE_DATA(query) *self, __u64 space_0, __u64 space_1, __u32 flags,
		     const struct memslot_entry *entries, unsigned int count,
		     struct memslot_commit *commit)
{
	*commit = empty_commit(MEMSLOT_COMMIT_IF_GENERATION | flags);
	commit->if_generation[0] = space_0;
	commit->if_generation[1] = space_1;
	return device_commit_with(self->vm.device, commit, entries, count);
}

TEST_F(query, if_generation)
{
	const struct memslot_entry batch[] = { vm_region(&self->vm, 5, 50, 4, 100) };
	const struct memslot_entry other = vm_region(&self->vm, 6, 60, 1, 0);
	const struct memslot_entry smm = in_smm(other);
	struct memslot_commit commit;
	__u64 seen[2];

	ASSERT_TRUE(vm_generations(&self->vm, seen));
	ASSERT_EQ(-ESTALE, commit_if(self, seen[0] + 2, seen[1], 0, batch, 1, &commit));
	ASSERT_EQ(MEMSLOT_REASON_GENERATION, commit.reason);
	ASSERT_EQ(MEMSLOT_NO_ENTRY, commit.failed_index);
	ASSERT_EQ(seen[0], commit.generation[0]);
	ASSERT_EQ(-ESTALE, commit_if(self, 0, seen[1], 0, batch, 1, &commit));

	/* What the batch does not name does not count. */
	ASSERT_EQ(0, commit_if(self, seen[0], 12345, 0, batch, 1, &commit));
	model_apply(&self->vm, batch, 1);
	ASSERT_TRUE(vm_check(&self->vm));

	/* KVM's own ioctl is somebody else, too. */
	ASSERT_TRUE(vm_generations(&self->vm, seen));
	ASSERT_EQ(0, vm_set_region(&self->vm, &smm));
	ASSERT_EQ(-ESTALE, commit_if(self, seen[0], seen[1], 0, &smm, 1, &commit));
	ASSERT_EQ(0, commit_if(self, seen[0], seen[1], MEMSLOT_COMMIT_TEST_ONLY, batch, 1,
			       &commit));
	ASSERT_EQ(0, vm_set_region(&self->vm, &other));
	ASSERT_EQ(-ESTALE, commit_if(self, seen[0], seen[1], MEMSLOT_COMMIT_TEST_ONLY, batch, 1,
				     &commit));
	ASSERT_EQ(-ESTALE, commit_if(self, seen[0], seen[1], 0, batch, 1, &commit));
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(query, generations_without_the_flag)
{
	struct memslot_commit commit = empty_commit(0);

	commit.if_generation[1] = 2;
	ASSERT_EQ(-EINVAL, device_commit_with(self->vm.device, &commit, NULL, 0));
	ASSERT_EQ(MEMSLOT_REASON_ARGUMENT, commit.reason);
	commit = empty_commit(0);
	commit.reserved = 1;
	ASSERT_EQ(-EINVAL, device_commit_with(self->vm.device, &commit, NULL, 0));
	ASSERT_EQ(MEMSLOT_REASON_ARGUMENT, commit.reason);
}

TEST_F(query, stale_batch_stays_staged)
{
	const struct memslot_entry batch[] = { vm_region(&self->vm, 5, 50, 4, 100) };
	struct memslot_commit commit;
	struct memslot_stage stage;
	__u64 seen[2];

	ASSERT_EQ(0, device_stage(self->vm.device, batch, 1, &stage));
	ASSERT_EQ(-ESTALE, commit_if(self, 1, 1, 0, NULL, 0, &commit));
	ASSERT_TRUE(vm_generations(&self->vm, seen));
	ASSERT_EQ(0, commit_if(self, seen[0], seen[1], 0, NULL, 0, &commit));
	ASSERT_EQ(1, commit.created);
	model_apply(&self->vm, batch, 1);
	ASSERT_TRUE(vm_check(&self->vm));
}

/* Each thread moves slot 5 on by a page, from wherever it is: none may get lost. */
#define MOVERS 4
#define MOVES 8

struct mover {
	FIXTURE_DATA(query) *self;
	unsigned int stale;
	int failed;
};

static int move_on(struct vm *vm, int device, struct memslot_entry *slots,
		   struct memslot_query *seen)
{
	struct memslot_commit commit = empty_commit(MEMSLOT_COMMIT_IF_GENERATION);
	unsigned int i;

	if (device_query(device, 0, slots, MAX_SLOTS, seen))
		return -EIO;
	for (i = 0; i < seen->count && slots[i].slot != 5; i++)
		;
	if (i == seen->count)
		return -EIO;
	slots[i].userspace_addr += PAGE;
	commit.if_generation[0] = seen->generation;
	return device_commit_with(device, &commit, &slots[i], 1);
}

static void *move(void *argument)
{
	struct mover *mover = argument;
	struct vm *vm = &mover->self->vm;
	struct memslot_entry slots[MAX_SLOTS];
	struct memslot_query seen;
	const int device = device_open();
	struct memslot_bind bind;
	unsigned int done = 0;
	int err = device < 0 ? device : device_bind(device, vm->fd, &bind);

	while (!err && done < MOVES) {
		err = move_on(vm, device, slots, &seen);
		if (!err)
			done++;
		if (err == -ESTALE) {
			mover->stale++;
			err = 0;
		}
	}
	mover->failed = err;
	close(device);
	return NULL;
}

TEST_F(query, nobodys_change_is_lost)
{
	const struct memslot_entry start = vm_region(&self->vm, 5, 50, 1, 0);
	struct memslot_entry end = vm_region(&self->vm, 5, 50, 1, MOVERS * MOVES);
	struct mover movers[MOVERS] = {};
	pthread_t threads[MOVERS];
	unsigned int i;

	ASSERT_EQ(0, vm_set_region(&self->vm, &start));
	for (i = 0; i < MOVERS; i++) {
		movers[i].self = self;
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, move, &movers[i]));
	}
	for (i = 0; i < MOVERS; i++) {
		pthread_join(threads[i], NULL);
		ASSERT_EQ(0, movers[i].failed);
	}
	model_apply(&self->vm, &end, 1);
	ASSERT_TRUE(vm_check(&self->vm));
}

/* ---- Layouts as a whole ---- */

static int replace(FIXTURE_DATA(query) *self, __u32 spaces, __u32 flags,
		   const struct memslot_entry *entries, unsigned int count,
		   struct memslot_commit *commit)
{
	*commit = empty_commit(MEMSLOT_COMMIT_REPLACE_ALL | flags);
	commit->replace_spaces = spaces;
	return device_commit_with(self->vm.device, commit, entries, count);
}

/* The guest's own slot, then two that share nothing with today's but ids and places. */
static void another_layout(FIXTURE_DATA(query) *self, struct memslot_entry batch[3])
{
	batch[0] = *model_find(&self->vm, 0, GUEST_SLOT);
	batch[1] = vm_region(&self->vm, 2, 10, 8, 100);
	batch[2] = vm_region(&self->vm, 1, 18, 30, 20);
}

TEST_F(query, replace_one_address_space)
{
	struct memslot_entry batch[3];
	const struct memslot_entry gone[] = { absent(3), absent(7) };
	struct memslot_commit dry, commit;
	unsigned int i;

	another_layout(self, batch);
	ASSERT_EQ(0, replace(self, 1, MEMSLOT_COMMIT_TEST_ONLY, batch, 3, &dry));
	ASSERT_TRUE(vm_check(&self->vm));
	ASSERT_EQ(0, replace(self, 1, 0, batch, 3, &commit));
	model_apply(&self->vm, batch, 3);
	model_apply(&self->vm, gone, 2);
	ASSERT_TRUE(vm_check(&self->vm));
	for (i = 0; i < 2; i++) {
		const struct memslot_commit *said = i ? &commit : &dry;

		ASSERT_EQ(1, said->created);
		ASSERT_EQ(2, said->deleted);
		ASSERT_EQ(1, said->replaced);
		ASSERT_EQ(0, said->moved);
		ASSERT_EQ(kvm_has_tdp_mmu() ? MEMSLOT_STRATEGY_FENCE : MEMSLOT_STRATEGY_PARK,
			  said->strategy);
		ASSERT_EQ(grace_periods_of_removal(), said->grace_periods);
	}
	ASSERT_EQ(0, query(self, 0));
	ASSERT_TRUE(is_the_model(&self->vm, 0, self->slots, &self->reply, true));
	ASSERT_EQ(0, query(self, 1));
	ASSERT_TRUE(is_the_model(&self->vm, 1, self->slots, &self->reply, true));
}

TEST_F(query, replace_everything_by_nothing)
{
	struct memslot_commit commit;

	ASSERT_EQ(0, replace(self, 3, 0, NULL, 0, &commit));
	ASSERT_EQ(7, commit.deleted);
	ASSERT_EQ(grace_periods_of_removal(), commit.grace_periods);
	ASSERT_EQ(0, query(self, 0));
	ASSERT_EQ(0, self->reply.count);
	ASSERT_EQ(0, query(self, 1));
	ASSERT_EQ(0, self->reply.count);
	/* Now there is nothing to replace. */
	ASSERT_EQ(0, replace(self, 3, 0, NULL, 0, &commit));
	ASSERT_EQ(0, commit.grace_periods);
	ASSERT_EQ(MEMSLOT_STRATEGY_NONE, commit.strategy);
}

TEST_F(query, replace_all_is_refused_whole)
{
	struct memslot_entry batch[4];
	struct memslot_commit commit;

	another_layout(self, batch);
	/* A removal of a slot that is not there, and an overlap among the new ones. */
	batch[3] = absent(99);
	ASSERT_EQ(-ENOENT, replace(self, 1, 0, batch, 4, &commit));
	ASSERT_EQ(3, commit.failed_index);
	batch[3] = vm_region(&self->vm, 30, 12, 1, 0);
	ASSERT_EQ(-EEXIST, replace(self, 1, 0, batch, 4, &commit));
	ASSERT_EQ(3, commit.failed_index);
	ASSERT_EQ(MEMSLOT_REASON_OVERLAP_ENTRY, commit.reason);
	/* Slot 1 of SMM is not in the way of a batch that replaces the other space only. */
	batch[3] = in_smm(vm_region(&self->vm, 30, 20, 1, 0));
	ASSERT_EQ(-EEXIST, replace(self, 1, 0, batch, 4, &commit));
	ASSERT_EQ(MEMSLOT_REASON_OVERLAP_SLOT, commit.reason);
	ASSERT_EQ(3, commit.failed_index);
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(query, flag_and_spaces_go_together)
{
	struct memslot_commit commit;

	ASSERT_EQ(-EINVAL, replace(self, 0, 0, NULL, 0, &commit));
	ASSERT_EQ(MEMSLOT_REASON_ARGUMENT, commit.reason);
	ASSERT_EQ(-EINVAL, replace(self, 4, 0, NULL, 0, &commit));
	ASSERT_EQ(MEMSLOT_REASON_ADDRESS_SPACE, commit.reason);
	ASSERT_EQ(-EINVAL, replace(self, 0x80000001, 0, NULL, 0, &commit));
	ASSERT_EQ(MEMSLOT_REASON_ADDRESS_SPACE, commit.reason);
	commit = empty_commit(0);
	commit.replace_spaces = 1;
	ASSERT_EQ(-EINVAL, device_commit_with(self->vm.device, &commit, NULL, 0));
	ASSERT_EQ(MEMSLOT_REASON_ARGUMENT, commit.reason);
	ASSERT_TRUE(vm_check(&self->vm));
}

/* Two whole layouts in turn under vCPUs that use all of the memory that both have. */
TEST_F(query, replace_all_under_running_vcpus)
{
	struct memslot_entry layouts[2][4];
	struct spinner spinners[2];
	struct memslot_commit commit;
	unsigned int i;

	layouts[0][0] = *model_find(&self->vm, 0, GUEST_SLOT);
	layouts[1][0] = layouts[0][0];
	layouts[0][1] = vm_region(&self->vm, 1, 0, 32, 0);
	layouts[0][2] = vm_region(&self->vm, 2, 32, 8, 32);
	layouts[0][3] = vm_region(&self->vm, 3, 40, 8, 40);
	layouts[1][1] = vm_region(&self->vm, 2, 0, 8, 64);
	layouts[1][2] = vm_region(&self->vm, 9, 8, 24, 8);
	layouts[1][3] = vm_region(&self->vm, 4, 32, 16, 80);
	ASSERT_EQ(0, replace(self, 1, 0, layouts[0], 4, &commit));
	/* vCPU 1 is in SMM; let it have the same memory there. */
	for (i = 0; i < 4; i++)
		layouts[0][i] = in_smm(layouts[0][i]);
	ASSERT_EQ(0, replace(self, 2, 0, layouts[0], 4, &commit));
	for (i = 0; i < 4; i++)
		layouts[0][i].address_space = 0;

	ASSERT_TRUE(spinner_start(&spinners[0], &self->vm, 0, guest_spin, WINDOW, 48));
	ASSERT_TRUE(spinner_start(&spinners[1], &self->vm, 1, guest_spin, WINDOW, 48));
	for (i = 1; i <= 50; i++) {
		ASSERT_EQ(0, replace(self, 1, 0, layouts[i % 2], 4, &commit));
		ASSERT_EQ(5, commit.created + commit.replaced + commit.deleted);
		ASSERT_EQ(kvm_has_tdp_mmu() ? MEMSLOT_STRATEGY_FENCE : MEMSLOT_STRATEGY_PARK,
			  commit.strategy);
		if (i % 10 == 0)
			ASSERT_TRUE(spinner_progresses(&spinners[0], 1));
	}
	ASSERT_TRUE(spinner_stop(&spinners[0]));
	ASSERT_TRUE(spinner_stop(&spinners[1]));
}

