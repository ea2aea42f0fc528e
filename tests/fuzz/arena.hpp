/* SPDX-License-Identifier: GPL-2.0 */
#pragma once

#include "chance.hpp"

#include <cstddef>
#include <thread>

namespace fuzz {

inline constexpr std::uint64_t page_size = 4096;

/*
 * The memory that calls may name: as guest memory, and for what they read and write.  Nothing else
 * of this process is in danger, as no call names any other address that it could reach.
 */
class arena {
public:
	arena(std::uint64_t seed, unsigned int threads);
	~arena();
	arena(const arena &) = delete;
	arena &operator=(const arena &) = delete;

	/* Good memory for guests */
	static constexpr std::uint64_t pool_pages = 2048;
	std::uint64_t pool(std::uint64_t page) const;

	/* Where a guest's memory may be said to be: mostly in the pool. */
	std::uint64_t guest_memory(chance &chance, std::uint64_t pages) const;

	/*
	 * Where @size bytes of a thread's argument may be: mostly good, sometimes up to the end of
	 * what can be reached, and sometimes not readable, not writable, slow, or nowhere.
	 */
	std::uint64_t argument(chance &chance, unsigned int thread, std::uint64_t size) const;

	static constexpr std::uint64_t scratch_size = 1 << 17;

	/* Writes to memory that calls may only read, too; false where nobody can write. */
	bool put(std::uint64_t address, const void *value, std::uint64_t size) const;

	/* Is that memory which nobody writes but this thread, and the calls that it makes? */
	bool is_private(unsigned int thread, std::uint64_t address, std::uint64_t size) const;

	/* The memory changes under whoever uses it. */
	void disturb(chance &chance) const;

	/* No userfault is answered any more; done by itself at the end. */
	void stop();

private:
	std::uint64_t at(std::uint64_t offset) const;
	std::uint64_t bad(chance &chance) const;
	std::uint64_t scratch(unsigned int thread) const;
	void serve(std::uint64_t seed, const std::stop_token &stopped) const;

	std::byte *base_;
	std::byte *readonly_; /* where the memory that can only be read can be written */
	int userfault_ = -1;
	std::jthread server_;
};

} // namespace fuzz
