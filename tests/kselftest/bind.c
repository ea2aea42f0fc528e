// SPDX-License-Identifier: GPL-2.0
/* Which VM a file may be bound to, who may use it, and how long the VM lives. */
#include <fcntl.h>
#include <limits.h>
#include <sys/socket.h>

#include "harness.h"

/* The layout that each VM here has, and the entry that is staged or committed. */
#define SLOT_PAGES 8

FIXTURE(bind) {
	struct vm vm;
	struct memslot_entry entry;
};

FIXTURE_SETUP(bind)
{
	struct memslot_entry first;

	ASSERT_TRUE(vm_create(&self->vm, 2, 2 * SLOT_PAGES, POOL_SMALL_PAGES));
	self->vm.window_pages = 4 * SLOT_PAGES;
	first = vm_region(&self->vm, 1, 0, SLOT_PAGES, 0);
	ASSERT_EQ(0, vm_set_region(&self->vm, &first));
	self->entry = vm_region(&self->vm, 2, 2 * SLOT_PAGES, SLOT_PAGES, SLOT_PAGES);
	self->vm.device = device_open();
	ASSERT_LE(0, self->vm.device);
}

FIXTURE_TEARDOWN(bind)
{
	vm_destroy(&self->vm);
}

/* Runs a function in a forked child; returns what it returned. */
static int in_child(int (*run)(struct vm *vm, int argument), struct vm *vm, int argument)
{
	const pid_t child = fork();
	int status;

	if (child < 0)
		return -errno;
	if (!child)
		_exit(run(vm, argument));
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status))
		return -ECHILD;
	return WEXITSTATUS(status);
}

TEST_F(bind, reports_the_address_spaces)
{
	struct memslot_bind reply;

	ASSERT_EQ(0, device_bind(self->vm.device, self->vm.fd, &reply));
	EXPECT_EQ(ioctl(self->vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE),
		  reply.address_spaces);
	EXPECT_EQ(MEMSLOT_REASON_NONE, reply.reason);
	EXPECT_EQ(self->vm.fd, reply.vm_fd);
}

TEST_F(bind, reserved_field)
{
	struct memslot_bind bind = {
		.size = sizeof(bind),
		.vm_fd = self->vm.fd,
		.reserved = 1,
	};

	ASSERT_EQ(-EINVAL, call_ioctl(self->vm.device, MEMSLOT_IOC_BIND, &bind));
	ASSERT_EQ(MEMSLOT_REASON_ARGUMENT, bind.reason);
	ASSERT_EQ(0, bind.address_spaces);
	ASSERT_EQ(-ENOTCONN, device_reset(self->vm.device));
}

TEST_F(bind, not_an_open_file)
{
	const int fds[] = { -1, 1000, INT_MAX, INT_MIN };
	struct memslot_bind reply;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		ASSERT_EQ(-EBADF, device_bind(self->vm.device, fds[i], &reply));
		ASSERT_EQ(MEMSLOT_REASON_NONE, reply.reason);
		ASSERT_EQ(0, reply.address_spaces);
	}
	ASSERT_EQ(-EBADF, device_bind(self->vm.device, open("/dev/kvm", O_PATH), &reply));
	ASSERT_EQ(-ENOTCONN, device_reset(self->vm.device));
}

TEST_F(bind, not_a_vm)
{
	struct memslot_bind reply;
	unsigned int i;
	int pipes[2];

	ASSERT_EQ(0, pipe(pipes));
	const int fds[] = {
		pipes[0],
		open("/dev/null", O_RDWR),
		open("/dev/kvm", O_RDWR),
		open("/", O_RDONLY),
		socket(AF_UNIX, SOCK_STREAM, 0),
		self->vm.vcpu[0],
		self->vm.device,
		device_open(),
	};

	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		ASSERT_LE(0, fds[i]);
		ASSERT_EQ(-EINVAL, device_bind(self->vm.device, fds[i], &reply));
		ASSERT_EQ(MEMSLOT_REASON_NOT_KVM, reply.reason);
		ASSERT_EQ(0, reply.address_spaces);
	}
	ASSERT_EQ(-ENOTCONN, device_reset(self->vm.device));
	ASSERT_EQ(0, device_bind(self->vm.device, self->vm.fd, &reply));
}

TEST_F(bind, only_once)
{
	struct memslot_bind reply;
	struct memslot_commit commit;
	struct vm other;

	ASSERT_TRUE(vm_create(&other, 1, 1, POOL_SMALL_PAGES));
	ASSERT_EQ(0, device_bind(self->vm.device, self->vm.fd, &reply));
	ASSERT_EQ(-EBUSY, device_bind(self->vm.device, self->vm.fd, &reply));
	ASSERT_EQ(MEMSLOT_REASON_BOUND, reply.reason);
	ASSERT_EQ(-EBUSY, device_bind(self->vm.device, other.fd, &reply));
	ASSERT_EQ(MEMSLOT_REASON_BOUND, reply.reason);

	/* It is still the first VM. */
	ASSERT_TRUE(vm_apply(&self->vm, &self->entry, 1, &commit));
	vm_destroy(&other);
}

TEST_F(bind, several_files_to_one_vm)
{
	const int second = device_open();
	struct memslot_stage stage;
	struct memslot_commit commit;
	struct memslot_bind reply;

	ASSERT_LE(0, second);
	ASSERT_EQ(0, device_bind(self->vm.device, self->vm.fd, &reply));
	ASSERT_EQ(0, device_bind(second, self->vm.fd, &reply));

	/* Each has a batch of its own. */
	ASSERT_EQ(0, device_stage(self->vm.device, &self->entry, 1, &stage));
	ASSERT_EQ(0, device_commit(second, 0, NULL, 0, &commit));
	ASSERT_EQ(0, commit.created);
	ASSERT_EQ(0, device_reset(second));
	ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &commit));
	ASSERT_EQ(1, commit.created);
	model_apply(&self->vm, &self->entry, 1);
	ASSERT_TRUE(vm_check(&self->vm));
	close(second);
}

TEST_F(bind, unbound_file)
{
	struct memslot_stage stage;
	struct memslot_commit commit;

	ASSERT_EQ(-ENOTCONN, device_stage(self->vm.device, &self->entry, 1, &stage));
	ASSERT_EQ(MEMSLOT_REASON_NOT_BOUND, stage.reason);
	ASSERT_EQ(MEMSLOT_NO_ENTRY, stage.failed_index);
	ASSERT_EQ(-ENOTCONN, device_commit(self->vm.device, 0, &self->entry, 1, &commit));
	ASSERT_EQ(MEMSLOT_REASON_NOT_BOUND, commit.reason);
	ASSERT_EQ(MEMSLOT_NO_ENTRY, commit.failed_index);
	ASSERT_EQ(-ENOTCONN, device_commit(self->vm.device, 0, NULL, 0, &commit));
	ASSERT_EQ(-ENOTCONN, device_reset(self->vm.device));
	ASSERT_TRUE(vm_check(&self->vm));
}

/* Returns 0 if BIND says that the VM is another process's. */
static int bind_is_refused(struct vm *vm, int vm_fd)
{
	struct memslot_bind reply;

	if (device_bind(device_open(), vm_fd, &reply) != -EIO)
		return 1;
	return reply.reason == MEMSLOT_REASON_OWNER && !reply.address_spaces ? 0 : 2;
}

TEST_F(bind, vm_of_the_parent)
{
	ASSERT_EQ(0, in_child(bind_is_refused, &self->vm, self->vm.fd));
}

/* Sends the file descriptor of a VM of its own, and keeps it alive for a while. */
static int send_own_vm(struct vm *vm, int peer)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {
		.header = {
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
			.cmsg_len = CMSG_LEN(sizeof(int)),
		},
	};
	char byte = 0;
	struct iovec data = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct vm own;

	if (!vm_create(&own, 1, 1, POOL_SMALL_PAGES))
		return 1;
	memcpy(CMSG_DATA(&control.header), &own.fd, sizeof(own.fd));
	if (sendmsg(peer, &message, 0) != 1)
		return 2;
	/* until the parent has tried */
	return read(peer, &byte, 1) == 1 ? 0 : 3;
}

static int receive_fd(int peer)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	char byte;
	struct iovec data = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	int fd;

	if (recvmsg(peer, &message, 0) != 1 || control.header.cmsg_type != SCM_RIGHTS)
		return -1;
	memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));
	return fd;
}

TEST_F(bind, vm_of_a_child)
{
	struct memslot_bind reply;
	int peers[2], status, fd;
	pid_t child;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, peers));
	child = fork();
	ASSERT_LE(0, child);
	if (!child)
		_exit(send_own_vm(&self->vm, peers[1]));
	fd = receive_fd(peers[0]);
	ASSERT_LE(0, fd);
	EXPECT_EQ(-EIO, device_bind(self->vm.device, fd, &reply));
	EXPECT_EQ(MEMSLOT_REASON_OWNER, reply.reason);
	ASSERT_EQ(1, write(peers[0], "", 1));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	ASSERT_EQ(0, status);

	/* It is nobody's now, and still not ours. */
	EXPECT_EQ(-EIO, device_bind(self->vm.device, fd, &reply));
	EXPECT_EQ(MEMSLOT_REASON_OWNER, reply.reason);
	ASSERT_EQ(0, device_bind(self->vm.device, self->vm.fd, &reply));
}

/* Returns 0 if nothing can be done with a file that another process bound. */
static int use_is_refused(struct vm *vm, int device)
{
	const struct memslot_entry entry = vm_region(vm, 3, 3 * SLOT_PAGES, SLOT_PAGES, 0);
	struct memslot_stage stage;
	struct memslot_commit commit;
	struct memslot_bind bind;

	if (device_stage(device, &entry, 1, &stage) != -EIO ||
	    stage.reason != MEMSLOT_REASON_OWNER || stage.failed_index != MEMSLOT_NO_ENTRY)
		return 1;
	if (device_commit(device, 0, &entry, 1, &commit) != -EIO ||
	    commit.reason != MEMSLOT_REASON_OWNER || commit.failed_index != MEMSLOT_NO_ENTRY)
		return 2;
	if (device_commit(device, 0, NULL, 0, &commit) != -EIO)
		return 3;
	if (device_commit(device, MEMSLOT_COMMIT_TEST_ONLY, NULL, 0, &commit) != -EIO)
		return 4;
	if (device_reset(device) != -EIO)
		return 5;
	return device_bind(device, vm->fd, &bind) == -EBUSY ? 0 : 6;
}

TEST_F(bind, file_of_the_parent)
{
	struct memslot_commit commit;
	struct memslot_stage stage;
	struct memslot_bind reply;

	ASSERT_EQ(0, device_bind(self->vm.device, self->vm.fd, &reply));
	ASSERT_EQ(0, device_stage(self->vm.device, &self->entry, 1, &stage));
	ASSERT_EQ(0, in_child(use_is_refused, &self->vm, self->vm.device));

	/* The child neither changed nor lost what the parent had staged. */
	ASSERT_TRUE(vm_check(&self->vm));
	ASSERT_EQ(0, device_commit(self->vm.device, 0, NULL, 0, &commit));
	ASSERT_EQ(1, commit.created);
	model_apply(&self->vm, &self->entry, 1);
	ASSERT_TRUE(vm_check(&self->vm));
}

/* A child that shares the memory is as good as the owner. */
TEST_F(bind, child_with_the_same_memory)
{
	struct memslot_commit commit;
	struct memslot_bind reply;
	static int result = 1; /* not where vfork() may lose it */
	int status;
	pid_t child;

	ASSERT_EQ(0, device_bind(self->vm.device, self->vm.fd, &reply));
	child = vfork();
	if (!child) {
		result = device_commit(self->vm.device, 0, &self->entry, 1, &commit);
		_exit(0);
	}
	ASSERT_EQ(child, waitpid(child, &status, 0));
	ASSERT_EQ(0, result);
	ASSERT_EQ(1, commit.created);
	model_apply(&self->vm, &self->entry, 1);
	ASSERT_TRUE(vm_check(&self->vm));
}

TEST_F(bind, vm_file_may_be_closed)
{
	struct memslot_entry gone = absent(1);
	struct memslot_commit commit;
	struct memslot_bind reply;

	ASSERT_EQ(0, device_bind(self->vm.device, self->vm.fd, &reply));
	ASSERT_EQ(0, close(self->vm.fd));
	self->vm.fd = -1;
	ASSERT_TRUE(vm_apply(&self->vm, &self->entry, 1, &commit));
	ASSERT_TRUE(vm_apply(&self->vm, &gone, 1, &commit));
}

/* With all of the VM's own files gone it lives on until the device is closed. */
TEST_F(bind, vm_goes_with_the_file)
{
	struct memslot_commit commit;
	struct memslot_bind reply;
	long users, alone;
	unsigned int i;

	vm_destroy(&self->vm);
	users = kvm_module_users();
	ASSERT_LE(0, users);

	ASSERT_TRUE(vm_create(&self->vm, 1, 2 * SLOT_PAGES, POOL_SMALL_PAGES));
	self->vm.device = device_open();
	ASSERT_EQ(0, device_bind(self->vm.device, self->vm.fd, &reply));
	for (i = 0; i < self->vm.vcpus; i++) {
		munmap(self->vm.run[i], self->vm.run_size);
		close(self->vm.vcpu[i]);
	}
	self->vm.vcpus = 0;
	close(self->vm.fd);
	self->vm.fd = -1;

	alone = kvm_module_users();
	EXPECT_LT(users, alone);
	self->entry = vm_region(&self->vm, 2, 0, SLOT_PAGES, 0);
	ASSERT_EQ(0, device_commit(self->vm.device, 0, &self->entry, 1, &commit));
	ASSERT_EQ(1, commit.created);
	close(self->vm.device);
	self->vm.device = -1;
	EXPECT_EQ(users, kvm_module_users());
}
