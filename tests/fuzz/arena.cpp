// SPDX-License-Identifier: GPL-2.0
#include "arena.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <system_error>
#include <unistd.h>

namespace fuzz {

namespace {

constexpr std::uint64_t mib = 1 << 20;

/* What is where in the arena; all of it is one mapping of address space */
enum place : std::uint64_t {
	pool_at = 0,
	readonly_at = 8 * mib,
	nothing_at = 9 * mib,
	slow_at = 10 * mib,
	file_at = 11 * mib, /* its second half is beyond the end of the file */
	scratch_at = 12 * mib,
	arena_size = 16 * mib,
};

/* Per thread: scratch memory, then a page that cannot be reached */
constexpr std::uint64_t stride = arena::scratch_size + page_size;

void check(bool ok, const char *what)
{
	if (!ok)
		throw std::system_error(errno, std::generic_category(), what);
}

} // namespace

arena::arena(std::uint64_t seed, unsigned int threads)
{
	/* Aligned, so that there are huge pages */
	void *area = mmap(nullptr, 2 * arena_size, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	check(area != MAP_FAILED, "mmap of the arena");
	base_ = reinterpret_cast<std::byte *>(
		(reinterpret_cast<std::uintptr_t>(area) + arena_size - 1) & -arena_size);

	const auto protect = [&](std::uint64_t offset, std::uint64_t size, int protection) {
		check(!mprotect(base_ + offset, size, protection), "mprotect");
	};
	protect(pool_at, pool_pages * page_size, PROT_READ | PROT_WRITE);
	check(!madvise(base_ + pool_at, pool_pages * page_size / 2, MADV_HUGEPAGE), "madvise");
	protect(slow_at, mib, PROT_READ | PROT_WRITE);
	for (unsigned int i = 0; i < threads; i++)
		protect(scratch_at + i * stride, scratch_size, PROT_READ | PROT_WRITE);

	const auto map_file = [](std::byte *where, int protection, int fixed, int file) {
		void *memory = mmap(where, mib, protection, MAP_SHARED | fixed, file, 0);

		check(memory != MAP_FAILED, "mmap of a file");
		return static_cast<std::byte *>(memory);
	};
	const int half = memfd_create("half", MFD_CLOEXEC);
	check(half >= 0 && !ftruncate(half, mib / 2), "memfd");
	map_file(base_ + file_at, PROT_READ | PROT_WRITE, MAP_FIXED, half);
	close(half);
	const int readonly = memfd_create("readonly", MFD_CLOEXEC);
	check(readonly >= 0 && !ftruncate(readonly, mib), "memfd");
	map_file(base_ + readonly_at, PROT_READ, MAP_FIXED, readonly);
	readonly_ = map_file(nullptr, PROT_READ | PROT_WRITE, 0, readonly);
	close(readonly);

	uffdio_api api{};
	uffdio_register range{};
	userfault_ = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
	check(userfault_ >= 0, "userfaultfd");
	api.api = UFFD_API;
	check(!ioctl(userfault_, UFFDIO_API, &api), "UFFDIO_API");
	range.range.start = at(slow_at);
	range.range.len = mib;
	range.mode = UFFDIO_REGISTER_MODE_MISSING;
	check(!ioctl(userfault_, UFFDIO_REGISTER, &range), "UFFDIO_REGISTER");
	server_ = std::jthread(
		[this, seed](const std::stop_token &stopped) { serve(seed, stopped); });
}

arena::~arena()
{
	stop();
	munmap(base_, arena_size);
	munmap(readonly_, mib);
}

void arena::stop()
{
	if (userfault_ < 0)
		return;
	uffdio_range slow{};

	server_.request_stop();
	server_.join();
	/*
	 * Unregistering lets everybody go who still waits.  To close alone is not enough on Linux
	 * 6.1: a vCPU's page fault (get_user_pages) that finds the userfaultfd released tries again
	 * with the mmap lock held, which the release is waiting for, and neither ever ends.
	 */
	slow.start = at(slow_at);
	slow.len = mib;
	check(!ioctl(userfault_, UFFDIO_UNREGISTER, &slow), "UFFDIO_UNREGISTER");
	close(userfault_);
	userfault_ = -1;
}

std::uint64_t arena::at(std::uint64_t offset) const
{
	return reinterpret_cast<std::uint64_t>(base_) + offset;
}

std::uint64_t arena::pool(std::uint64_t page) const
{
	return at(pool_at + page * page_size);
}

std::uint64_t arena::scratch(unsigned int thread) const
{
	return at(scratch_at + thread * stride);
}

bool arena::put(std::uint64_t address, const void *value, std::uint64_t size) const
{
	const std::uint64_t offset = address - at(readonly_at);
	const std::uint64_t to =
		offset < mib - size ? reinterpret_cast<std::uint64_t>(readonly_) + offset : address;
	const iovec local{.iov_base = const_cast<void *>(value), .iov_len = size};
	const iovec remote{.iov_base = reinterpret_cast<void *>(to), .iov_len = size};

	return process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == static_cast<ssize_t>(size);
}

bool arena::is_private(unsigned int thread, std::uint64_t address, std::uint64_t size) const
{
	const std::uint64_t offset = address - scratch(thread);

	return offset < scratch_size && scratch_size - offset >= size;
}

/* Nobody's address, or nobody's any more */
std::uint64_t arena::bad(chance &chance) const
{
	constexpr std::uint64_t end_of_user = 0x7ffffffff000;

	return chance.of<std::uint64_t>({
		0,
		8,
		at(nothing_at),
		at(nothing_at) - 8,
		at(file_at + mib / 2),
		end_of_user - page_size,
		end_of_user - 8,
		end_of_user,
		0x800000000000,
		0xffff800000000000,
		0xffffffff81000000,
		~0ULL - 7,
		~0ULL,
	});
}

std::uint64_t arena::guest_memory(chance &chance, std::uint64_t pages) const
{
	const std::uint64_t kind = chance.below(100);

	if (kind < 85)
		return pool(chance.below(pool_pages - pages + 1));
	if (kind < 88)
		return at(readonly_at) + chance.below(64) * page_size;
	if (kind < 91)
		return at(file_at) + chance.below(192) * page_size;
	if (kind < 94)
		return at(slow_at) + chance.below(192) * page_size;
	if (kind < 96)
		return at(nothing_at) + chance.below(64) * page_size;
	if (kind < 98)
		return pool(chance.below(pool_pages)) + chance.of({1, 8, 2048, 4095});
	return bad(chance);
}

std::uint64_t arena::argument(chance &chance, unsigned int thread, std::uint64_t size) const
{
	const std::uint64_t mine = scratch(thread);
	const std::uint64_t kind = chance.below(1000);

	if (size > scratch_size)
		return pool(chance.below(pool_pages / 4));
	if (kind < 600)
		return mine + (chance.below(scratch_size - size + 1) & ~7ULL);
	if (kind < 850) /* up to the end of what can be reached */
		return mine + scratch_size - size;
	if (kind < 920) /* beyond it */
		return mine + scratch_size - chance.below(size + 1);
	if (kind < 940)
		return at(readonly_at) + chance.below(mib / 2);
	if (kind < 960)
		return pool(chance.below(pool_pages / 2));
	if (kind < 965)
		return at(slow_at) + chance.below(mib / 2);
	if (kind < 980)
		return at(file_at) + chance.below(mib);
	return bad(chance);
}

void arena::disturb(chance &chance) const
{
	const std::uint64_t page = chance.below(pool_pages - 64);
	const std::uint64_t size = (1 + chance.below(64)) * page_size;
	std::byte *memory = base_ + pool_at + page * page_size;

	switch (chance.below(6)) {
	case 0:
	case 1:
		madvise(memory, size, MADV_DONTNEED);
		break;
	case 2:
		mprotect(memory, size, PROT_READ);
		mprotect(memory, size, PROT_READ | PROT_WRITE);
		break;
	case 3:
		mprotect(memory, size, PROT_NONE);
		mprotect(memory, size, PROT_READ | PROT_WRITE);
		break;
	case 4:
		madvise(base_ + slow_at, mib, MADV_DONTNEED);
		break;
	case 5: /* other pages, at once */
		check(mmap(memory, size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED,
		      "mmap of the pool");
		break;
	}
}

/* Answers userfaults, now and then after longer than a commit is willing to park vCPUs. */
void arena::serve(std::uint64_t seed, const std::stop_token &stopped) const
{
	using namespace std::chrono_literals;
	chance chance(seed);

	while (!stopped.stop_requested()) {
		pollfd ready{.fd = userfault_, .events = POLLIN, .revents = 0};
		uffd_msg message{};

		if (poll(&ready, 1, 20) <= 0 ||
		    read(userfault_, &message, sizeof(message)) != sizeof(message) ||
		    message.event != UFFD_EVENT_PAGEFAULT)
			continue;
		auto delay = chance.below(200) ? std::chrono::milliseconds(chance.below(5))
					       : 2500ms;
		for (; delay > 0ms && !stopped.stop_requested(); delay -= 10ms)
			std::this_thread::sleep_for(std::min(delay, 10ms));

		uffdio_zeropage zero{};
		zero.range.start = message.arg.pagefault.address & -page_size;
		zero.range.len = page_size;
		ioctl(userfault_, UFFDIO_ZEROPAGE, &zero);
	}
}

} // namespace fuzz
