// SPDX-License-Identifier: GPL-2.0
#include "device.hpp"

#include "next.hpp"
#include "raw_syscall.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/ioctl.h>

namespace memslot_run::device {

namespace {

/* Newer than Debian 12's <linux/kvm.h> */
constexpr long cap_user_memory2 = 231;

/* Where a VMM rarely has descriptors, yet below the usual limit of 1024 */
constexpr long first_fd = 512;

long raw_ioctl(int fd, unsigned long request, long argument) noexcept
{
	return raw_syscall(SYS_ioctl, fd, static_cast<long>(request), argument);
}

int to_errno(long result) noexcept
{
	return result < 0 ? static_cast<int>(-result) : 0;
}

} // namespace

int bind(int vm_fd, int &fd, limits &allowed)
{
	const long opened =
		raw_syscall(SYS_openat, AT_FDCWD, arg("/dev/memslot"), O_RDWR | O_CLOEXEC);

	if (opened < 0)
		return to_errno(opened);
	fd = static_cast<int>(opened);

	memslot_info info{};
	memslot_bind to{};

	info.size = sizeof(info);
	to.size = sizeof(to);
	to.vm_fd = vm_fd;

	int err = to_errno(raw_ioctl(fd, MEMSLOT_IOC_INFO, arg(&info)));

	if (!err)
		err = to_errno(raw_ioctl(fd, MEMSLOT_IOC_BIND, arg(&to)));
	if (err) {
		close(fd);
		return err;
	}

	const int elsewhere = relocate(fd);

	if (elsewhere >= 0) {
		close(fd);
		fd = elsewhere;
	}
	allowed = {
		.max_slot = std::min<std::uint32_t>(info.max_slot, layout::max_ids - 1),
		.max_entries = info.max_entries,
		.address_spaces = std::min<std::uint32_t>(to.address_spaces, layout::max_spaces),
		.region2 = raw_ioctl(vm_fd, KVM_CHECK_EXTENSION, cap_user_memory2) > 0,
	};
	return 0;
}

int commit(int fd, std::span<const memslot_entry> entries, std::uint32_t flags,
	   memslot_commit &reply)
{
	reply = {};
	reply.size = sizeof(reply);
	reply.flags = flags;
	reply.entries = static_cast<std::uint64_t>(arg(entries.data()));
	reply.count = static_cast<std::uint32_t>(entries.size());
	reply.entry_size = sizeof(memslot_entry);
	return to_errno(raw_ioctl(fd, MEMSLOT_IOC_COMMIT, arg(&reply)));
}

int set_region(int vm_fd, const kvm_userspace_memory_region &call)
{
	return to_errno(raw_ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, arg(&call)));
}

int forward(int fd, unsigned long request, void *argument)
{
	return next<"ioctl">(ioctl, fd, request, argument);
}

bool same_file(int one, int other)
{
	const long pid = raw_syscall(SYS_getpid);

	return raw_syscall(SYS_kcmp, pid, pid, KCMP_FILE, one, other) == 0;
}

int relocate(int fd)
{
	const long copy = raw_syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, first_fd);

	return copy < 0 ? -1 : static_cast<int>(copy);
}

void close(int fd)
{
	raw_syscall(SYS_close, fd);
}

} // namespace memslot_run::device
