// SPDX-License-Identifier: GPL-2.0
#include "process.hpp"

#include "raw_syscall.hpp"

#include <atomic>
#include <sys/mman.h>

namespace memslot_run::process {

namespace {

constexpr long page_size = 4096;

using word = std::atomic<std::uint32_t>;

/** The process by its number; of a child that shares the memory, the parent's. */
std::atomic<long> owner;

/** Where there is no page as below, only fork() with its handlers is noticed. */
constinit word always{1};

/** 1 in the owner, 0 in a copy of its memory: the kernel zeroes the page there. */
constinit std::atomic<word *> mark{&always};

[[gnu::constructor(101)]] void begin() noexcept
{
	const long page = raw_syscall(SYS_mmap, 0, page_size, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (!is_error(page) && raw_syscall(SYS_madvise, page, page_size, MADV_WIPEONFORK) == 0)
		mark.store(reinterpret_cast<word *>(page));
	settle();
}

} // namespace

bool is_original() noexcept
{
	return mark.load(std::memory_order_relaxed)->load(std::memory_order_relaxed) != 0;
}

kind look() noexcept
{
	if (!is_original())
		return kind::copy;
	return raw_syscall(SYS_getpid) == owner.load(std::memory_order_relaxed) ? kind::same
										: kind::sharing;
}

void settle() noexcept
{
	owner.store(raw_syscall(SYS_getpid), std::memory_order_relaxed);
	mark.load(std::memory_order_relaxed)->store(1, std::memory_order_relaxed);
}

} // namespace memslot_run::process
