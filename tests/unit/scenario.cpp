// SPDX-License-Identifier: GPL-2.0
// Layouts and batches from a string of bytes: random ones, or a fuzzer's.
#include <set>

#include "model.hpp"

u64 choices::below(u64 n)
{
	u64 value = 0;
	for (u64 range = n - 1; range; range >>= 8) {
		value <<= 8;
		if (left.empty())
			continue;
		value |= left.front();
		left = left.subspan(1);
	}
	return value % n;
}

namespace {

constexpr u64 gfn_end = 1ULL << 40;

// Where regions lie: from @start on, with bounds that are mostly multiples of
// @unit pages.
struct terrain {
	u64 start;
	u64 unit;
};

constexpr terrain terrains[] = {
	{0, 1},
	{3, 128}, // 2 MiB pages begin anywhere in it
	{0, 128},
	{0, 1 << 16}, // gigabyte pages
	{gfn_end - 4096, 128},
};

class author {
public:
	explicit author(choices &choices) : c(choices)
	{
	}
	scenario write();

private:
	u64 length();
	u64 place();
	u64 hva(u64 gfn);
	u32 flags();
	u32 id();
	void draw_rules();
	void draw_layout();
	void draw_changes();
	void add(const plan_region &region);
	void remove(const plan_region &region);
	void spoil(memslot_entry &entry);
	plan_region anything();
	const plan_region &some_slot();
	void change_something(plan_region &slot);
	void tweak(plan_region slot);
	void split(plan_region slot);
	void merge(const plan_region &slot);
	void swap(plan_region a, plan_region b);

	choices &c;
	scenario s = {};
	std::vector<plan_region> user; // today's user slots
	std::set<slot_key> named;
	terrain where = {};
	bool large = false; // many slots and many changes
	u32 usual_flags = 0;
	u64 usual_offset = 0;
};

u64 author::length()
{
	u64 pages = (1 + c.below(8)) * where.unit;
	return where.unit > 1 && c.one_in(4) ? pages + c.below(3) - 1 : pages;
}

u64 author::place()
{
	u64 gfn = where.start + c.below(24) * where.unit;
	return where.unit > 1 && c.one_in(4) ? gfn + c.below(3) : gfn;
}

// Few distances of hva to gfn, so that pages keep their host address often
u64 author::hva(u64 gfn)
{
	u64 offset = usual_offset;
	if (c.one_in(3))
		offset = c.pick<u64>({1 << 20, 2 << 20, (1 << 20) + 512, (1 << 20) + 1});
	return (gfn - (where.start & ~511ULL) + offset) * page;
}

u32 author::flags()
{
	return c.one_in(4) ? c.below(4) : usual_flags;
}

u32 author::id()
{
	return c.below(s.rules.max_slot + 1);
}

void author::draw_rules()
{
	large = c.one_in(12);
	s.rules = {
		.max_slot = large ? 39u : 11u,
		.address_spaces = c.one_in(8) ? 1u : 2u,
		.entry_flags = MEMSLOT_ENTRY_LOG_DIRTY_PAGES | MEMSLOT_ENTRY_READONLY,
		.max_pages = (1ULL << 31) - 1,
		.max_gfn = gfn_end - 1,
		.hva_end = (1ULL << 47) - page,
	};
	s.layout.dirty_ring = c.one_in(4);
	if (c.one_in(16))
		s.rules.entry_flags = MEMSLOT_ENTRY_LOG_DIRTY_PAGES;
	if (c.one_in(3))
		s.replace_spaces = c.below(1 << s.rules.address_spaces);
	where = terrains[c.below(ARRAY_SIZE(terrains))];
	usual_flags = c.below(4) & s.rules.entry_flags;
	usual_offset = c.pick<u64>({1 << 20, (1 << 20) + 512, (1 << 20) + 7});
}

void author::draw_layout()
{
	u64 cursor[] = {where.start, where.start};

	for (u64 n = large ? c.below(48) : c.below(9); n; n--) {
		u32 as = c.below(s.rules.address_spaces);
		u64 gfn = cursor[as] + (c.one_in(3) ? length() : 0), npages = length();
		bool internal = c.one_in(12);
		plan_region slot = {
			.address_space = as,
			.id = internal ? s.rules.max_slot + 1 + static_cast<u32>(c.below(3)) : id(),
			.flags = internal ? 0 : flags() & s.rules.entry_flags,
			.guest_memfd = !internal && c.one_in(large ? 256 : 32),
			.gfn = gfn,
			.npages = npages,
			.hva = hva(gfn),
			.slot = nullptr,
		};
		if (gfn + npages > gfn_end || !s.layout.slots.insert({{as, slot.id}, slot}).second)
			continue;
		cursor[as] = gfn + npages;
		if (!internal)
			user.push_back(slot);
	}
}

const plan_region &author::some_slot()
{
	return user[c.below(user.size())];
}

plan_region author::anything()
{
	u64 gfn = place();
	return {
		.address_space = static_cast<u32>(c.below(s.rules.address_spaces)),
		.id = id(),
		.flags = flags(),
		.guest_memfd = false,
		.gfn = gfn,
		.npages = length(),
		.hva = hva(gfn),
		.slot = nullptr,
	};
}

void author::add(const plan_region &region)
{
	// batches that name a slot twice are refused at once: few are enough
	if (!named.insert({region.address_space, region.id}).second && !c.one_in(16))
		return;
	memslot_entry entry = {
		.slot = region.id,
		.address_space = region.address_space,
		.flags = region.flags,
		.reserved = 0,
		.guest_phys_addr = region.gfn * page,
		.memory_size = region.npages * page,
		.userspace_addr = region.hva,
		.dirty_bitmap = 0,
		.dirty_bitmap_size = 0,
	};
	auto old = s.layout.slots.find({region.address_space, region.id});
	bool logged = old != s.layout.slots.end() &&
		      old->second.flags & MEMSLOT_ENTRY_LOG_DIRTY_PAGES;
	if (c.one_in(logged && !s.layout.dirty_ring ? 4 : 32)) {
		u64 bytes = logged ? (old->second.npages + 63) / 64 * 8 : 8;
		entry.dirty_bitmap = 0x7000;
		entry.dirty_bitmap_size = c.one_in(8) ? bytes - 8 : bytes + 8 * c.below(2);
	}
	if (c.one_in(32))
		spoil(entry);
	s.entries.push_back(entry);
}

void author::remove(const plan_region &region)
{
	plan_region nothing = region;
	nothing.npages = 0;
	nothing.flags &= s.rules.entry_flags;
	add(nothing);
}

// Puts something into one field that may not be there.
void author::spoil(memslot_entry &entry)
{
	switch (c.below(9)) {
	case 0:
		entry.slot = c.pick<u32>({s.rules.max_slot, s.rules.max_slot + 1, ~0u});
		break;
	case 1:
		entry.address_space = c.pick<u32>({s.rules.address_spaces, ~0u});
		break;
	case 2:
		entry.flags = 1u << c.below(32);
		break;
	case 3:
		entry.reserved = 1u << c.below(32);
		break;
	case 4:
		entry.guest_phys_addr =
			c.pick<u64>({entry.guest_phys_addr + 1, -page, gfn_end * page,
				     gfn_end * page - page, c.below(~0ULL)});
		break;
	case 5:
		entry.memory_size = c.pick<u64>(
			{s.rules.max_pages * page, s.rules.max_pages * page + page,
			 entry.memory_size + 512, 1, -page, 1ULL << 63, c.below(~0ULL)});
		break;
	case 6:
		entry.userspace_addr =
			c.pick<u64>({entry.userspace_addr + 8, s.rules.hva_end - entry.memory_size,
				     s.rules.hva_end - entry.memory_size + page, s.rules.hva_end,
				     -page, c.below(~0ULL)});
		break;
	case 7:
		entry.dirty_bitmap = c.pick<u64>({0, 8, 1, ~7ULL, c.below(~0ULL)});
		break;
	case 8:
		entry.dirty_bitmap_size = c.pick<u64>({0, 8, 4, ~7ULL, c.below(~0ULL)});
		break;
	}
}

void author::change_something(plan_region &slot)
{
	switch (c.below(8)) {
	case 0:
		break;
	case 1:
		slot.flags = c.below(4);
		break;
	case 2:
		slot.gfn = place();
		break;
	case 3:
		slot.npages = length();
		break;
	case 4:
		slot.hva = hva(slot.gfn);
		break;
	case 5: { // grows or shrinks at its start
		u64 end = slot.gfn + slot.npages, gfn = place();
		if (gfn < end) {
			slot.hva += (gfn - slot.gfn) * page;
			slot.npages = end - gfn;
			slot.gfn = gfn;
		}
		break;
	}
	case 6:
		slot.gfn += (1 + c.below(3)) * where.unit;
		break;
	case 7:
		slot.flags ^= MEMSLOT_ENTRY_LOG_DIRTY_PAGES;
		break;
	}
}

// Another slot in its place, which may differ in more than one way.
void author::tweak(plan_region slot)
{
	do {
		change_something(slot);
	} while (c.one_in(3));
	add(slot);
}

void author::split(plan_region slot)
{
	plan_region rest = slot;
	slot.npages = c.below(slot.npages);
	if (where.unit > 1 && !c.one_in(3))
		slot.npages &= ~(where.unit - 1);
	if (!slot.npages)
		return add(slot);
	rest.id = id();
	rest.flags = flags();
	rest.gfn += slot.npages;
	rest.hva += slot.npages * page;
	rest.npages -= slot.npages;
	add(slot);
	add(rest);
}

void author::merge(const plan_region &slot)
{
	plan_region all = slot;
	for (const plan_region &other : user) {
		if (other.address_space != slot.address_space || other.gfn <= slot.gfn)
			continue;
		all.npages = other.gfn + other.npages - all.gfn;
		remove(other);
		if (!c.one_in(3))
			break;
	}
	add(all);
}

void author::swap(plan_region a, plan_region b)
{
	std::swap(a.gfn, b.gfn);
	if (c.one_in(2))
		std::swap(a.npages, b.npages);
	if (c.one_in(2))
		std::swap(a.hva, b.hva);
	add(a);
	add(b);
}

void author::draw_changes()
{
	for (u64 n = large ? c.below(24) : c.below(5) + !c.one_in(8); n; n--) {
		u64 what = c.below(9);
		if (large) // of many changes one is enough to be refused
			what = c.pick<u64>({1, 5, 8, 8, 2});
		if (user.empty())
			what = 0;
		if (what == 0) {
			add(anything());
		} else if (what == 1) {
			remove(c.one_in(6) ? anything() : some_slot());
		} else if (what <= 4) {
			tweak(some_slot());
		} else if (what == 5) {
			split(some_slot());
		} else if (what == 6) {
			merge(some_slot());
		} else if (what == 7) {
			plan_region one = some_slot(); // arguments have no order
			swap(one, some_slot());
		} else { // the same memory under another id
			plan_region slot = some_slot();
			remove(slot);
			slot.id = id();
			add(slot);
		}
	}
	for (u64 n = c.below(4); n && !s.entries.empty(); n--)
		std::swap(s.entries.front(), s.entries[c.below(s.entries.size())]);
}

scenario author::write()
{
	draw_rules();
	draw_layout();
	draw_changes();
	return s;
}

} // namespace

scenario draw_scenario(choices &c)
{
	return author(c).write();
}

std::ostream &operator<<(std::ostream &out, const scenario &s)
{
	out << "address spaces " << s.rules.address_spaces << ", max_slot " << s.rules.max_slot
	    << ", replaced " << s.replace_spaces << (s.layout.dirty_ring ? ", dirty ring" : "")
	    << "\n"
	    << std::hex << std::showbase;
	for (const auto &[key, slot] : s.layout.slots)
		out << "slot  " << key.first << ":" << key.second << " gfn " << slot.gfn
		    << " npages " << slot.npages << " hva " << slot.hva << " flags " << slot.flags
		    << (slot.guest_memfd ? " guest_memfd" : "") << "\n";
	for (const memslot_entry &e : s.entries)
		out << "entry " << e.address_space << ":" << e.slot << " gpa " << e.guest_phys_addr
		    << " size " << e.memory_size << " hva " << e.userspace_addr << " flags "
		    << e.flags << " bitmap " << e.dirty_bitmap << "+" << e.dirty_bitmap_size
		    << "\n";
	return out << std::dec << std::noshowbase;
}
