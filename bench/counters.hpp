// SPDX-License-Identifier: GPL-2.0
/* Exact counts of what KVM does for the thread that changes memslots, and of vCPUs' page faults. */
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace bench {

/* Closes what it holds. */
class descriptor {
public:
	explicit descriptor(int fd = -1) : fd_(fd)
	{
	}
	~descriptor();
	descriptor(descriptor &&other) noexcept : fd_(std::exchange(other.fd_, -1))
	{
	}
	descriptor &operator=(descriptor &&other) noexcept
	{
		std::swap(fd_, other.fd_);
		return *this;
	}

	[[nodiscard]] int get() const
	{
		return fd_;
	}

private:
	int fd_;
};

/* How often this thread calls one of the kernel's functions, from construction on. */
class calls_of {
public:
	/*
	 * The first of these functions that this kernel has; throws if it has none, or no perf
	 * events.
	 */
	explicit calls_of(std::initializer_list<const char *> functions);
	/* The one in which KVM has a tracepoint, which compilers do not inline away. */
	explicit calls_of(const std::string &tracepoint);

	[[nodiscard]] std::uint64_t value() const;

private:
	descriptor fd_;
};

/* One statistic of a VM or a vCPU, by KVM's name for it (pages_2m, pf_fixed, ...). */
class statistic {
public:
	statistic(int fd, std::string_view name);

	[[nodiscard]] std::uint64_t value() const;

private:
	descriptor fd_;
	std::uint64_t offset_ = 0;
};

} // namespace bench
