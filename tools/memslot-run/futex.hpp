// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * Waiting and locking that no interposed function sees.
 */
#pragma once

#include "raw_syscall.hpp"

#include <atomic>
#include <cstdint>
#include <ctime>
#include <linux/futex.h>

namespace memslot_run {

using futex_word = std::atomic<std::uint32_t>;

static_assert(sizeof(futex_word) == sizeof(std::uint32_t) && futex_word::is_always_lock_free);

/** Sleeps until woken while the word has this value; no longer than @p timeout, if given. */
inline void futex_wait(futex_word &word, std::uint32_t value,
		       const timespec *timeout = nullptr) noexcept
{
	raw_syscall(SYS_futex, arg(&word), FUTEX_WAIT_PRIVATE, value, arg(timeout));
}

/** Wakes threads that sleep on the word. */
inline void futex_wake(futex_word &word, int how_many = 1) noexcept
{
	raw_syscall(SYS_futex, arg(&word), FUTEX_WAKE_PRIVATE, how_many);
}

/** A mutex; fits std::lock_guard. */
class futex_lock {
public:
	void lock() noexcept
	{
		std::uint32_t seen = FREE;

		if (word_.compare_exchange_strong(seen, HELD, std::memory_order_acquire))
			return;
		while (word_.exchange(AWAITED, std::memory_order_acquire) != FREE)
			futex_wait(word_, AWAITED);
	}

	void unlock() noexcept
	{
		if (word_.exchange(FREE, std::memory_order_release) == AWAITED)
			futex_wake(word_);
	}

	/** Whoever held it is gone: for the child of a fork. */
	void abandon() noexcept
	{
		word_.store(FREE, std::memory_order_relaxed);
	}

private:
	enum state : std::uint32_t { FREE, HELD, AWAITED };

	futex_word word_{FREE};
};

} // namespace memslot_run
