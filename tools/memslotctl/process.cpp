// SPDX-License-Identifier: GPL-2.0
#include "process.hpp"

#include "command.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
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

/* Whoever it belongs to, and whether /proc shows it or not; threads count, too */
bool exists(pid_t pid)
{
	return kill(pid, 0) == 0 || errno != ESRCH;
}

/* What the system says about looking into a process */
[[noreturn]] void refuse(pid_t pid, int err)
{
	const bool absent = err == ESRCH || err == ENOENT;

	if (absent && !exists(pid))
		throw problem(no_process, "there is no " + describe(pid));
	/* What a /proc mounted with hidepid hides is absent there, but only there */
	if (absent || err == EACCES || err == EPERM)
		throw problem(no_rights,
			      "no rights to look into " + describe(pid) +
				      ": run as root, or with CAP_SYS_PTRACE (see ptrace(2))");
	throw problem(failed, describe(pid) + ": " + std::strerror(err));
}

/* The entries of a directory below /proc that are numbers, ascending */
std::vector<int> numbers_in(const std::string &directory, std::error_code &error)
{
	std::vector<int> numbers;
	fs::directory_iterator entry(directory, error);

	for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
		const std::string name = entry->path().filename();
		const char *end = name.data() + name.size();
		int number = 0;

		if (std::from_chars(name.data(), end, number).ptr == end)
			numbers.push_back(number);
	}
	std::ranges::sort(numbers);
	return numbers;
}

std::vector<int> numbers_of(pid_t pid, const std::string &what)
{
	std::error_code error;
	std::vector<int> numbers = numbers_in("/proc/" + std::to_string(pid) + "/" + what, error);

	if (error)
		refuse(pid, error.value());
	return numbers;
}

/* The numbers of the process's descriptors that are VMs */
std::vector<int> vm_descriptors(pid_t pid)
{
	std::vector<int> numbers = numbers_of(pid, "fd");
	const std::string links = "/proc/" + std::to_string(pid) + "/fd/";

	std::erase_if(numbers, [&links](int number) {
		/* It may have been closed since */
		std::error_code gone;

		return fs::read_symlink(links + std::to_string(number), gone) != vm_link;
	});
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

	const int err = errno;

	/* That is how kernels say: a thread, not the first one; newer ones say ENOENT */
	if ((err == EINVAL || err == ENOENT) && exists(pid))
		throw problem(no_process,
			      std::to_string(pid) + " is a thread; give the PID of its process");
	refuse(pid, err);
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

std::vector<pid_t> all_processes()
{
	std::error_code error;
	std::vector<pid_t> pids = numbers_in("/proc", error);

	if (error)
		throw problem(failed, "/proc: " + error.message());
	return pids;
}

std::vector<pid_t> threads_of(pid_t pid)
{
	return numbers_of(pid, "task");
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
