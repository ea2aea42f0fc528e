/* SPDX-License-Identifier: GPL-2.0 */
#pragma once

#include "arena.hpp"
#include "chance.hpp"
#include "tally.hpp"

#include <array>
#include <atomic>
#include <thread>
#include <vector>

namespace fuzz {

/* Where guests look, and where calls put most of their slots */
inline constexpr std::uint64_t window = 16 << 20;
inline constexpr std::uint64_t window_pages = 256;

inline constexpr unsigned int most_vcpus = 4;

/*
 * A VM whose vCPUs read, write and execute in the window, whatever is there, and start anew when
 * that has killed them.
 */
class guest {
public:
	guest(const arena &arena, chance &chance, tally &tally);
	~guest();
	guest(const guest &) = delete;
	guest &operator=(const guest &) = delete;

	int fd() const
	{
		return fd_;
	}

	/* vCPUs that exist from the start; the rest is for calls to create. */
	unsigned int vcpus() const
	{
		return vcpus_;
	}

	int vcpu_fd(unsigned int i) const
	{
		return vcpu_[i];
	}

	/* The file may go while vCPUs run. */
	void close_vm();
	void stop();

private:
	void run(unsigned int i, chance chance);
	bool set_own_slots() const;
	bool reset(unsigned int i, chance &chance) const;

	std::byte *memory_;
	std::size_t run_size_ = 0;
	std::atomic<int> fd_{-1};
	unsigned int vcpus_ = 0;
	std::array<int, most_vcpus> vcpu_{};
	std::array<void *, most_vcpus> run_{};
	std::atomic<bool> stopping_{false};
	std::vector<std::jthread> threads_;
};

} // namespace fuzz
