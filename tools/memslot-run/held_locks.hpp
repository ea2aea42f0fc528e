// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * The mutexes that a thread holds.
 */
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

namespace memslot_run {

/**
 * Kept as addresses and not as a number: a mutex that another thread unlocks is forgotten when it
 * is next taken or destroyed, where a number would stay too high for good.  One thread's, so
 * without locking.
 */
class held_locks {
public:
	/** A lock was taken; a recursive one counts how often. */
	void took(const void *lock, bool recursive) noexcept
	{
		entry *known = find(lock);

		if (known != end()) {
			known->depth = recursive ? known->depth + 1 : 1;
		} else if (count_ < locks_.size()) {
			/* One too many only makes the last release come early */
			locks_[count_++] = {lock, 1};
		}
	}

	/** A lock was released. */
	void released(const void *lock) noexcept
	{
		entry *known = find(lock);

		if (known != end() && --known->depth == 0)
			*known = locks_[--count_];
	}

	/** A lock is no more. */
	void forget(const void *lock) noexcept
	{
		entry *known = find(lock);

		if (known != end())
			*known = locks_[--count_];
	}

	/** True if none is held once this one is released. */
	[[nodiscard]] bool is_last(const void *lock) const noexcept
	{
		return count_ == 0 ||
		       (count_ == 1 && locks_[0].lock == lock && locks_[0].depth == 1);
	}

	/** True if none is held. */
	[[nodiscard]] bool none() const noexcept
	{
		return count_ == 0;
	}

private:
	struct entry {
		const void *lock;
		unsigned depth;
	};

	entry *find(const void *lock) noexcept
	{
		return std::find_if(locks_.data(), end(),
				    [lock](const entry &one) { return one.lock == lock; });
	}

	entry *end() noexcept
	{
		return locks_.data() + count_;
	}

	std::array<entry, 32> locks_{};
	std::size_t count_ = 0;
};

} // namespace memslot_run
