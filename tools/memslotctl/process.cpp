// SPDX-License-Identifier: GPL-2.0
#include "process.hpp"

#include "command.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <linux/kcmp.h>
#include <sys/syscall.h>

namespace memslotctl {

namespace {

namespace fs = std::filesystem;

constexpr const char *vm_link = "anon_inode:kvm-vm";

std::string describe(pid_t pid)
{
	return "process " + std::to_string(pid);
}

/* What the system says about looking into a process */
[[noreturn]] void refuse(pid_t pid, int err)
{
	if (err == ESRCH || err == ENOENT)
		throw problem(no_process, "there is no " + describe(pid));
	if (err == EACCES || err == EPERM)
		throw problem(no_rights,
			      "no rights to look into " + describe(pid) +
				      ": run as root, or with CAP_SYS_PTRACE (see ptrace(2))");
	throw problem(failed, describe(pid) + ": " + std::strerror(err));
}

/* The numbers of the process's descriptors that are VMs */
std::vector<int> vm_descriptors(pid_t pid)
{
	std::vector<int> numbers;
	std::error_code error;
	fs::directory_iterator entry("/proc/" + std::to_string(pid) + "/fd", error);

	for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
		/* It may have been closed since */
		std::error_code gone;
		const std::string name = entry->path().filename();
		int number = 0;

		if (fs::read_symlink(entry->path(), gone) != vm_link)
			continue;
		std::from_chars(name.data(), name.data() + name.size(), number);
		numbers.push_back(number);
	}
	if (error)
		refuse(pid, error.value());
	std::ranges::sort(numbers);
	return numbers;
}

bool same_file(int one, int other)
{
	const pid_t self = getpid();

	return syscall(SYS_kcmp, self, self, KCMP_FILE, one, other) == 0;
}

} // namespace

file open_process(pid_t pid)
{
	file process(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));

	if (process.fd() >= 0)
		return process;
	/* That is how the kernel says: a thread, not the first one */
	if (errno == EINVAL && fs::exists("/proc/" + std::to_string(pid)))
		throw problem(no_process,
			      std::to_string(pid) + " is a thread; give the PID of its process");
	refuse(pid, errno);
}

std::vector<found_vm> find_vms(pid_t pid)
{
	const file process = open_process(pid);
	std::vector<found_vm> found;

	for (const int number : vm_descriptors(pid)) {
		file vm(static_cast<int>(syscall(SYS_pidfd_getfd, process.fd(), number, 0)));

		if (vm.fd() < 0) {
			if (errno == EBADF)
				continue;
			refuse(pid, errno);
		}

		const auto known = std::ranges::find_if(found, [&vm](const found_vm &each) {
			return same_file(each.vm.fd(), vm.fd());
		});
		if (known != found.end())
			known->fds.push_back(number);
		else
			found.push_back({.vm = std::move(vm), .fds = {number}});
	}
	if (found.empty())
		throw problem(no_vm, describe(pid) + " (" + process_name(pid) +
					     ") has no KVM virtual machine");
	return found;
}

std::string process_name(pid_t pid)
{
	std::ifstream in("/proc/" + std::to_string(pid) + "/comm");
	std::string name;

	std::getline(in, name);
	/* It may call itself anything: escapes for a terminal, half a character */
	std::ranges::replace_if(
		name, [](char each) { return each < ' ' || each > '~'; }, '?');
	return name;
}

} // namespace memslotctl
