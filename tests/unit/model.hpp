// SPDX-License-Identifier: GPL-2.0
// What a plan must be, found out another way than plan.c does: gfn by gfn.
#ifndef MEMSLOT_TESTS_MODEL_HPP
#define MEMSLOT_TESTS_MODEL_HPP

#include <cstdint>
#include <initializer_list>
#include <map>
#include <ostream>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

extern "C" {
#include "plan.h"
}

#undef min
#undef max

constexpr u64 page = 1ULL << PLAN_PAGE_SHIFT;

using slot_key = std::pair<u32, u32>; // address space, id
using slot_map = std::map<slot_key, plan_region>;

struct plan_layout {
	slot_map slots;
	bool dirty_ring = false;
	mutable u32 looks = 0; // how often plan_layout_next() was asked
};

struct scenario {
	plan_rules rules;
	plan_layout layout;
	std::vector<memslot_entry> entries;
	u32 replace_spaces = 0;
};

std::ostream &operator<<(std::ostream &out, const scenario &s);

// Owns a plan, and what plan_build() said.
struct made_plan {
	struct plan plan = {};
	plan_error error = {};
	int err;
	u32 looks; // as plan_layout.looks

	explicit made_plan(const scenario &s);
	made_plan(const made_plan &) = delete;
	made_plan &operator=(const made_plan &) = delete;
	~made_plan();
};

// Decisions: what the bytes say, and 0 where there are none left.
class choices {
public:
	explicit choices(std::span<const uint8_t> bytes) : left(bytes)
	{
	}
	u64 below(u64 n);
	// rare ones are not what the end of the bytes says
	bool one_in(u64 n)
	{
		return below(n) == n - 1;
	}
	template <typename T>
	T pick(std::initializer_list<T> list)
	{
		return list.begin()[below(list.size())];
	}

private:
	std::span<const uint8_t> left;
};

// A valid layout and a batch for it, of which some entries may be nonsense.
scenario draw_scenario(choices &c);

// What plan.c did, and the model would not have
struct wrong : std::logic_error {
	using std::logic_error::logic_error;
};

// What was in a scenario; for tests that want to know that they tested something
struct findings {
	u32 reason = 0;
	u32 refused_entries = 0; // by plan_check_entry(), and left out of the batch
	u32 changes = 0;
	u32 kinds = 0;	   // bit per enum plan_kind
	u32 cuts = 0;	   // boundaries through what may be a huge page
	u32 ring_zaps = 0; // runs that are zapped only because of a dirty ring
	u32 kept = 0;	   // runs that keep their translations
	u32 dropped = 0;   // slots that go and are not named
};

// Lets plan.c judge the entries and plan the batch, and throws wrong.
findings check_scenario(scenario s);

#endif // MEMSLOT_TESTS_MODEL_HPP
