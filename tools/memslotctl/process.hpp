// SPDX-License-Identifier: GPL-2.0
/* The virtual machines of another process. */
#pragma once

#include <string>
#include <sys/types.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace memslotctl {

/* A file descriptor that is closed at the end. */
class file {
public:
	explicit file(int fd = -1) noexcept : fd_(fd)
	{
	}

	file(file &&other) noexcept : fd_(std::exchange(other.fd_, -1))
	{
	}

	file &operator=(file &&other) noexcept
	{
		std::swap(fd_, other.fd_);
		return *this;
	}

	~file()
	{
		if (fd_ >= 0)
			::close(fd_);
	}

	[[nodiscard]] int fd() const noexcept
	{
		return fd_;
	}

private:
	int fd_;
};

/* A VM, and how its process calls it. */
struct found_vm {
	/* our own descriptor of it */
	file vm;
	/* the process's, ascending */
	std::vector<int> fds;
};

/* A running process; throws a problem. */
[[nodiscard]] file open_process(pid_t pid);

/* The PIDs of all processes that /proc shows, ascending; throws a problem. */
[[nodiscard]] std::vector<pid_t> all_processes();

/* The threads of a process; throws a problem. */
[[nodiscard]] std::vector<pid_t> threads_of(pid_t pid);

/* All VMs that a process has a descriptor of, by their lowest one; throws a problem. */
[[nodiscard]] std::vector<found_vm> find_vms(pid_t pid);

/* What a process calls itself, in printable ASCII. */
[[nodiscard]] std::string process_name(pid_t pid);

} // namespace memslotctl
