/* SPDX-License-Identifier: GPL-2.0 */
#pragma once

#include "arena.hpp"
#include "chance.hpp"
#include "guest.hpp"
#include "tally.hpp"

#include <linux/memslot.h>
#include <memory>
#include <span>

namespace fuzz {

/* What the threads of a round share */
struct world {
	const arena &memory;
	tally &counts;
	std::span<std::unique_ptr<guest>> guests;
	/* Open files of /dev/memslot; threads close and open them under each other's feet. */
	std::span<std::atomic<int>> devices;
	/* Whose scratch memory has no arguments: what one thread stages, another may commit. */
	unsigned int nobody;
};

/* Makes calls, one after the other, as one thread of a round. */
class caller {
public:
	caller(world &world, unsigned int thread, std::uint64_t seed);

	/* One call, or something that calls are to stand. */
	void step();

private:
	template <typename T>
	long call_device(call what, unsigned long number, T value);

	void info();
	void bind();
	void stage();
	void commit();
	void reset();
	void query();
	void unknown();
	void set_region();
	void dirty_log();
	void change_files();
	void create_vcpu();
	void fork_and_call();

	std::uint32_t flags(std::uint32_t known);
	std::uint32_t size_of(std::uint32_t size);
	memslot_entry entry();
	void spoil(memslot_entry &entry);
	static memslot_entry move_to_lane(memslot_entry entry, std::uint32_t slot);
	std::uint64_t entries(std::uint32_t &count, std::uint32_t &entry_size);
	int device();
	guest &any_guest();

	world &world_;
	unsigned int thread_;
	chance chance_;
	bool may_fork_ = true;
	int device_ = -1;			    /* of the last call */
	std::array<std::uint64_t, 2> generation_{}; /* as last seen */
};

} // namespace fuzz
