// SPDX-License-Identifier: GPL-2.0
/* Exact counts of what KVM does for the thread that changes memslots, and of vCPUs' page faults. */
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace bench {

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
	~calls_of();
	calls_of(calls_of &&other) noexcept;
	calls_of &operator=(calls_of &&) = delete;
	calls_of(const calls_of &) = delete;
	calls_of &operator=(const calls_of &) = delete;

	[[nodiscard]] std::uint64_t value() const;

private:
	int fd_ = -1;
};

/* One statistic of a VM or a vCPU, by KVM's name for it (pages_2m, pf_fixed, ...). */
class statistic {
public:
	statistic(int fd, std::string_view name);
	~statistic();
	statistic(statistic &&other) noexcept;
	statistic &operator=(statistic &&) = delete;
	statistic(const statistic &) = delete;
	statistic &operator=(const statistic &) = delete;

	[[nodiscard]] std::uint64_t value() const;

private:
	int fd_ = -1;
	std::uint64_t offset_ = 0;
};

} // namespace bench
