// SPDX-License-Identifier: GPL-2.0
/*
 * In place of device.cpp: a kernel with KVM and the module, good for one VM at a time.  Uses no
 * function that interpose.cpp defines.
 */
#include "device.hpp"
#include "fake_device.hpp"

#include "futex.hpp"
#include "raw_syscall.hpp"

#include <cerrno>
#include <fcntl.h>
#include <mutex>
#include <sys/ioctl.h>

namespace {

using namespace memslot_run;
using test::model;
using test::fake::event;

futex_lock lock;
model vm;
std::vector<event> happened;
bool hole;
long creator;

int fake_file() noexcept
{
	return static_cast<int>(raw_syscall(SYS_eventfd2, 0, O_CLOEXEC));
}

void note(event::kind what, std::uint64_t detail)
{
	happened.push_back({what, detail, raw_syscall(SYS_gettid)});
}

void look()
{
	const std::uint64_t size = test::fake::watch_size;

	hole |= size && !vm.covers(test::fake::watch_gpa, size);
}

int create_vm()
{
	const std::lock_guard guard(lock);

	vm = {};
	creator = raw_syscall(SYS_getpid);
	return fake_file();
}

bool is_owner()
{
	return raw_syscall(SYS_getpid) == creator;
}

} // namespace

namespace memslot_run::device {

int bind(int, int &fd, limits &allowed)
{
	if (const int err = test::fake::fail_bind.exchange(0))
		return err;
	fd = relocate(fake_file());
	test::fake::memslot_fd = fd;
	allowed = {
		.max_slot = model::max_slot,
		.max_entries = 100,
		.address_spaces = 2,
		.region2 = true,
	};
	return 0;
}

int commit(int fd, std::span<const memslot_entry> entries, std::uint32_t flags,
	   memslot_commit &reply)
{
	const bool test_only = flags & MEMSLOT_COMMIT_TEST_ONLY;

	test::fake::stalled++;
	while (!test_only && test::fake::stall)
		raw_syscall(SYS_sched_yield);
	test::fake::stalled--;

	const std::lock_guard guard(lock);

	if (raw_syscall(SYS_fcntl, fd, F_GETFD) < 0)
		return EBADF;
	if (!is_owner())
		return EIO;
	if (!test_only && test::fake::fail_commit)
		return test::fake::fail_commit;

	const int err = vm.commit(entries, test_only);

	if (!err && !test_only) {
		note(event::COMMIT, entries.size());
		look();
		reply.strategy = MEMSLOT_STRATEGY_FENCE;
		reply.grace_periods = 1;
	}
	return err;
}

int set_region(int, const kvm_userspace_memory_region &call)
{
	const std::lock_guard guard(lock);

	if (!is_owner())
		return EIO;
	note(event::SINGLE, call.slot);

	const int err = vm.set_region(call);

	look();
	return err;
}

int forward(int fd, unsigned long request, void *argument)
{
	if (fd == test::fake::kvm_fd && request == KVM_CREATE_VM)
		return create_vm();
	if (request == KVM_SET_USER_MEMORY_REGION) {
		const int err =
			set_region(fd, *static_cast<const kvm_userspace_memory_region *>(argument));

		errno = err;
		return err ? -1 : 0;
	}

	{
		const std::lock_guard guard(lock);

		note(event::IOCTL, request);
	}
	if (request == KVM_RUN && test::fake::run) {
		errno = test::fake::run();
		return errno ? -1 : 0;
	}
	return 0;
}

bool same_file(int one, int other)
{
	const long pid = raw_syscall(SYS_getpid);

	return raw_syscall(SYS_kcmp, pid, pid, 0, one, other) == 0;
}

int relocate(int fd)
{
	return static_cast<int>(raw_syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 100));
}

void close(int fd)
{
	raw_syscall(SYS_close, fd);
}

} // namespace memslot_run::device

namespace test::fake {

void reset()
{
	const std::lock_guard guard(lock);

	vm = {};
	happened.clear();
	hole = false;
	fail_bind = 0;
	fail_commit = 0;
	watch_size = 0;
	run = nullptr;
	stall = false;
}

std::vector<event> events()
{
	const std::lock_guard guard(lock);

	return happened;
}

unsigned count(event::kind what)
{
	const std::lock_guard guard(lock);
	unsigned found = 0;

	for (const event &one : happened)
		found += one.what == what;
	return found;
}

model layout()
{
	const std::lock_guard guard(lock);

	return vm;
}

bool covered()
{
	const std::lock_guard guard(lock);

	return !hole;
}

} // namespace test::fake
