// SPDX-License-Identifier: GPL-2.0
#include "model.hpp"

#include <algorithm>
#include <cerrno>
#include <optional>
#include <set>
#include <string>

// ---- The layout that plan.c sees ----

namespace {

// Each slot of a layout is an object of its own, as in the kernel.
void *identity(const plan_region &slot)
{
	return const_cast<plan_region *>(&slot);
}

bool tell(const plan_region *slot, plan_region *region)
{
	if (!slot)
		return false;
	*region = *slot;
	region->slot = identity(*slot);
	return true;
}

const plan_region *find(const slot_map &slots, slot_key key)
{
	auto slot = slots.find(key);
	return slot == slots.end() ? nullptr : &slot->second;
}

} // namespace

extern "C" bool plan_layout_has_dirty_ring(const plan_layout *layout)
{
	return layout->dirty_ring;
}

extern "C" bool plan_layout_find(const plan_layout *layout, u32 address_space, u32 id,
				 plan_region *region)
{
	return tell(find(layout->slots, {address_space, id}), region);
}

extern "C" bool plan_layout_next(const plan_layout *layout, u32 address_space, u64 gfn, u64 end,
				 plan_region *region)
{
	const plan_region *first = nullptr;
	layout->looks++;
	for (const auto &[key, slot] : layout->slots)
		if (key.first == address_space && slot.gfn < end && slot.gfn + slot.npages > gfn &&
		    (!first || slot.gfn < first->gfn))
			first = &slot;
	return tell(first, region);
}

made_plan::made_plan(const scenario &s)
{
	const plan_request request = {
		.entries = s.entries.data(),
		.nr_entries = static_cast<u32>(s.entries.size()),
		.replace_spaces = s.replace_spaces,
		.rules = &s.rules,
	};
	err = plan_build(&plan, &request, &s.layout, &error);
	looks = s.layout.looks;
}

made_plan::~made_plan()
{
	plan_free(&plan);
}

namespace {

using wide = unsigned __int128;

constexpr u64 huge_sizes[] = {1 << 9, 1 << 18}; // in pages

void expect(bool right, const char *what)
{
	if (!right)
		throw wrong(what);
}

void equal(u64 got, u64 wanted, const char *what)
{
	if (got != wanted)
		throw wrong(std::string(what) + ": got " + std::to_string(got) + ", wanted " +
			    std::to_string(wanted));
}

u64 end_of(const plan_region &region)
{
	return region.gfn + region.npages;
}

u64 hva_of(const plan_region &region, u64 gfn)
{
	return region.hva + (gfn - region.gfn) * page;
}

bool overlap(const plan_region &a, const plan_region &b)
{
	return a.address_space == b.address_space &&
	       std::max(a.gfn, b.gfn) < std::min(end_of(a), end_of(b));
}

bool same(const plan_region &a, const plan_region &b)
{
	return a.address_space == b.address_space && a.id == b.id && a.flags == b.flags &&
	       a.gfn == b.gfn && a.npages == b.npages && a.hva == b.hva;
}

plan_region wanted_by(const memslot_entry &e)
{
	return {
		.address_space = e.address_space,
		.id = e.slot,
		.flags = e.flags,
		.guest_memfd = false,
		.gfn = e.guest_phys_addr / page,
		.npages = e.memory_size / page,
		.hva = e.userspace_addr,
		.slot = nullptr,
	};
}

// ---- One entry ----

// All that is wrong with an entry; which of it is named is not laid down.
std::set<u32> faults(const memslot_entry &e, const plan_rules &rules)
{
	std::set<u32> all;
	auto fault = [&](bool is, u32 reason) {
		if (is)
			all.insert(reason);
	};

	fault(e.reserved, MEMSLOT_REASON_ARGUMENT);
	fault(e.slot > rules.max_slot, MEMSLOT_REASON_SLOT_ID);
	fault(e.address_space >= rules.address_spaces, MEMSLOT_REASON_ADDRESS_SPACE);
	fault((e.flags | rules.entry_flags) != rules.entry_flags, MEMSLOT_REASON_FLAGS);
	fault(e.memory_size % page, MEMSLOT_REASON_SIZE_ALIGN);
	fault(e.dirty_bitmap % 8, MEMSLOT_REASON_BITMAP_ALIGN);
	fault(e.dirty_bitmap_size % 8, MEMSLOT_REASON_BITMAP_SIZE);
	fault(e.dirty_bitmap && !e.dirty_bitmap_size, MEMSLOT_REASON_BITMAP_SIZE);
	fault(!e.dirty_bitmap && e.dirty_bitmap_size, MEMSLOT_REASON_BITMAP_SIZE);
	if (!e.memory_size)
		return all;

	wide gpa_end = wide{e.guest_phys_addr} + e.memory_size;
	wide hva_end = wide{e.userspace_addr} + e.memory_size;
	fault(e.guest_phys_addr % page, MEMSLOT_REASON_GPA_ALIGN);
	fault(e.userspace_addr % page, MEMSLOT_REASON_HVA_ALIGN);
	fault(e.memory_size / page > rules.max_pages, MEMSLOT_REASON_TOO_LARGE);
	fault(gpa_end > (wide{rules.max_gfn} + 1) * page || gpa_end > ~0ULL,
	      MEMSLOT_REASON_GPA_RANGE);
	fault(hva_end > rules.hva_end, MEMSLOT_REASON_HVA_RANGE);
	return all;
}

bool check_entry(const memslot_entry &e, const plan_rules &rules)
{
	std::set<u32> known = faults(e, rules);
	u32 reason = MEMSLOT_REASON_NONE;
	int err = plan_check_entry(&e, &rules, &reason);

	if (known.empty()) {
		expect(!err, "an entry is refused without a reason");
		return true;
	}
	expect(err, "a bad entry is accepted");
	expect(known.contains(reason), "an entry is refused for another reason");
	equal(-err, reason == MEMSLOT_REASON_FLAGS ? EOPNOTSUPP : EINVAL, "errno of an entry");
	return false;
}

// ---- The batch: an error, or the final layout ----

struct verdict {
	int err = 0;
	plan_error blame = {MEMSLOT_NO_ENTRY, MEMSLOT_REASON_NONE};
	slot_map after = {};
	std::set<slot_key> dropped = {}; // and not named
};

verdict refusal(int err, u32 index, u32 reason)
{
	return {.err = err, .blame = {index, reason}};
}

slot_key key_of(const memslot_entry &e)
{
	return {e.address_space, e.slot};
}

verdict judge(const scenario &s)
{
	const slot_map &today = s.layout.slots;
	std::set<slot_key> named;
	for (u32 i = 0; i < s.entries.size(); i++)
		if (!named.insert(key_of(s.entries[i])).second)
			return refusal(-EINVAL, i, MEMSLOT_REASON_DUPLICATE);

	for (u32 i = 0; i < s.entries.size(); i++) {
		const memslot_entry &e = s.entries[i];
		const plan_region *old = find(today, key_of(e));
		if (!old && !e.memory_size)
			return refusal(-ENOENT, i, MEMSLOT_REASON_NO_SLOT);
		if (old && old->guest_memfd)
			return refusal(-EOPNOTSUPP, i, MEMSLOT_REASON_GUEST_MEMFD);
		if (!e.dirty_bitmap)
			continue;
		if (s.layout.dirty_ring)
			return refusal(-EOPNOTSUPP, i, MEMSLOT_REASON_DIRTY_RING);
		if (!old || !(old->flags & MEMSLOT_ENTRY_LOG_DIRTY_PAGES) ||
		    same(*old, wanted_by(e)))
			return refusal(-EINVAL, i, MEMSLOT_REASON_NO_DIRTY_LOG);
		if (wide{e.dirty_bitmap_size} * 8 < old->npages)
			return refusal(-EINVAL, i, MEMSLOT_REASON_BITMAP_SIZE);
	}

	verdict v;
	slot_map staying;
	for (const auto &[key, slot] : today) {
		bool user = key.second <= s.rules.max_slot;
		if (named.contains(key))
			continue;
		if (!user || !(s.replace_spaces >> key.first & 1))
			staying[key] = slot;
		else if (slot.guest_memfd)
			return refusal(-EOPNOTSUPP, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_GUEST_MEMFD);
		else
			v.dropped.insert(key);
	}

	for (u32 i = 0; i < s.entries.size(); i++) {
		plan_region wanted = wanted_by(s.entries[i]);
		auto in_the_way = [&](const auto &other) { return overlap(other.second, wanted); };
		if (!wanted.npages)
			continue;
		if (std::any_of(v.after.begin(), v.after.end(), in_the_way))
			return refusal(-EEXIST, i, MEMSLOT_REASON_OVERLAP_ENTRY);
		if (std::any_of(staying.begin(), staying.end(), in_the_way))
			return refusal(-EEXIST, i, MEMSLOT_REASON_OVERLAP_SLOT);
		v.after[key_of(s.entries[i])] = wanted;
	}
	v.after.merge(staying);
	return v;
}

plan_kind kind_of(const plan_region *old, const plan_region *now)
{
	if (!old)
		return PLAN_CREATE;
	if (!now)
		return PLAN_DELETE;

	bool gfn = old->gfn != now->gfn;
	bool log = (old->flags ^ now->flags) & MEMSLOT_ENTRY_LOG_DIRTY_PAGES;
	bool rest = old->hva != now->hva || old->npages != now->npages ||
		    ((old->flags ^ now->flags) & MEMSLOT_ENTRY_READONLY);
	if (!gfn && !log && !rest)
		return PLAN_NOTHING;
	if (gfn && !log && !rest)
		return PLAN_MOVE;
	if (!gfn && log && !rest)
		return PLAN_REFLAG;
	return PLAN_REPLACE;
}

// ---- A plan, change by change ----

// Puts all old slots out and all new ones in, as commit.c does.
slot_map carry_out(const plan &plan, slot_map slots, const slot_map &identities)
{
	for (u32 i = 0; i < plan.nr_changes; i++) {
		const plan_change &change = plan.changes[i];
		if (!change.before.slot)
			continue;
		slot_key key = {change.before.address_space, change.before.id};
		const plan_region *slot = find(identities, key);
		expect(slot && change.before.slot == identity(*slot) && slots.erase(key),
		       "a slot that leaves is not there");
	}
	for (u32 i = 0; i < plan.nr_changes; i++) {
		const plan_change &change = plan.changes[i];
		expect(!change.after.slot, "a slot exists before it is allocated");
		if (!change.after.npages)
			continue;
		for (const auto &[key, other] : slots)
			expect(!overlap(other, change.after), "slots overlap");
		expect(slots.insert({{change.after.address_space, change.after.id}, change.after})
			       .second,
		       "a slot that comes is there already");
	}
	return slots;
}

void check_layout(const slot_map &got, const slot_map &wanted)
{
	equal(got.size(), wanted.size(), "number of slots afterwards");
	for (const auto &[key, slot] : wanted) {
		const plan_region *other = find(got, key);
		expect(other && same(*other, slot), "a slot is not what it should be afterwards");
	}
}

struct span {
	u64 start = ~0ULL;
	u64 end = 0;

	void widen(u64 from, u64 to)
	{
		start = std::min(start, from);
		end = std::max(end, to);
	}
	bool equals(const plan_span &other) const
	{
		return start < end ? start == other.start && end == other.end
				   : other.start >= other.end;
	}
};

u32 check_changes(const scenario &s, const plan &plan, const verdict &v)
{
	u32 count[PLAN_REFLAG + 1] = {}, touched = 0, kinds = 0;
	std::set<slot_key> unnamed;
	span gfns, hvas;
	bool drops = false, moves_log = false;

	// The entries that change something, in their order
	std::vector<const memslot_entry *> changing;
	for (const memslot_entry &entry : s.entries) {
		slot_key key = key_of(entry);
		plan_kind kind = kind_of(find(s.layout.slots, key), find(v.after, key));

		if (kind != PLAN_NOTHING)
			changing.push_back(&entry);
		else
			count[kind]++;
	}
	if (count[PLAN_NOTHING])
		kinds |= 1u << PLAN_NOTHING;

	equal(plan.nr_changes, changing.size() + v.dropped.size(), "number of changes");
	for (u32 i = 0; i < plan.nr_changes; i++) {
		const plan_change &change = plan.changes[i];
		slot_key key = {change.after.address_space, change.after.id};
		const plan_region *old = find(s.layout.slots, key), *now = find(v.after, key);
		plan_kind kind = kind_of(old, now);

		if (i < changing.size())
			expect(key == key_of(*changing[i]) && change.entry == changing[i],
			       "a change is not of its entry");
		else
			expect(unnamed.insert(key).second && !change.entry, "a slot goes twice");
		expect(old ? same(change.before, *old) && change.before.slot == identity(*old)
			   : !change.before.npages && !change.before.slot,
		       "a change begins with another slot");
		expect(now ? same(change.after, *now) : !change.after.npages,
		       "a change ends with another slot");
		equal(change.kind, kind, "kind of a change");
		count[kind]++;
		kinds |= 1u << kind;
		touched |= 1u << key.first;
		if (kind == PLAN_REFLAG)
			continue;
		drops |= kind != PLAN_CREATE;
		moves_log |= kind == PLAN_MOVE && now->flags & MEMSLOT_ENTRY_LOG_DIRTY_PAGES;
		for (const plan_region *region : {old, now}) {
			if (!region)
				continue;
			gfns.widen(region->gfn, end_of(*region));
			hvas.widen(region->hva, region->hva + region->npages * page);
		}
	}
	expect(unnamed == v.dropped, "other slots go than should");
	for (u32 kind = PLAN_NOTHING; kind <= PLAN_REFLAG; kind++)
		equal(plan.totals.count[kind], count[kind], "changes of a kind");
	equal(plan.touched, touched, "touched address spaces");
	equal(plan.drops_slots, drops, "drops_slots");
	equal(plan.moves_log, moves_log, "moves_log");
	expect(gfns.equals(plan.fence_gfn), "fence in gfns");
	expect(hvas.equals(plan.fence_hva), "fence in hvas");
	equal(plan.hands_back,
	      std::any_of(s.entries.begin(), s.entries.end(),
			  [](const memslot_entry &e) { return e.dirty_bitmap; }),
	      "hands_back");
	return kinds;
}

// ---- A plan, gfn by gfn ----

// Gfns that all fare alike: single ones, or all between two places where
// anything begins or ends
struct run {
	u64 gfn;
	u64 end;
	const plan_region *old;
	const plan_region *now;
	bool counts; // one of its slots is changed
	bool cut;    // and not only reflagged: there are segments for it
	bool must_zap;
	bool zapped;
};

class surveyor {
public:
	surveyor(const scenario &scenario, const plan &plan, const verdict &verdict)
	    : s(scenario), p(plan), v(verdict)
	{
	}
	void check(findings &found);

private:
	std::vector<u64> bounds(u32 as) const;
	std::vector<run> survey(u32 as) const;
	bool must_zap(const run &r) const;
	plan_kind kind(const plan_region &slot) const;
	bool is_zapped(u32 as, u64 gfn) const;
	void check_order() const;
	void check_segments(u32 as, const std::vector<run> &runs) const;
	[[nodiscard]] u32 uncovered_segments() const;
	u32 check_zaps(const std::vector<run> &runs) const;

	const scenario &s;
	const plan &p;
	const verdict &v;
};

const plan_region *holder(const slot_map &slots, u32 as, u64 gfn)
{
	for (const auto &[key, slot] : slots)
		if (key.first == as && gfn >= slot.gfn && gfn < end_of(slot))
			return &slot;
	return nullptr;
}

std::vector<u64> surveyor::bounds(u32 as) const
{
	std::vector<u64> all;
	auto add = [&](u32 where, u64 gfn, u64 npages) {
		if (where == as)
			all.insert(all.end(), {gfn, gfn + npages});
	};

	for (const slot_map *slots : {&s.layout.slots, &v.after})
		for (const auto &[key, slot] : *slots)
			add(key.first, slot.gfn, slot.npages);
	for (u32 i = 0; i < p.nr_segments; i++)
		add(p.segments[i].address_space, p.segments[i].gfn, p.segments[i].npages);
	for (u32 i = 0; i < p.nr_zaps; i++)
		add(p.zaps[i].address_space, p.zaps[i].gfn, p.zaps[i].npages);
	std::sort(all.begin(), all.end());
	if (!all.empty() && all.back() - all.front() <= 256)
		for (u64 gfn = all.front(), last = all.back(); gfn < last; gfn++)
			all.push_back(gfn);
	std::sort(all.begin(), all.end());
	all.erase(std::unique(all.begin(), all.end()), all.end());
	return all;
}

plan_kind surveyor::kind(const plan_region &slot) const
{
	slot_key key = {slot.address_space, slot.id};
	return kind_of(find(s.layout.slots, key), find(v.after, key));
}

// Is a vCPU wrong that goes on with today's translation?
bool surveyor::must_zap(const run &r) const
{
	if (!r.old || !r.cut)
		return false;
	if (!r.now || hva_of(*r.old, r.gfn) != hva_of(*r.now, r.gfn) ||
	    r.old->flags != r.now->flags)
		return true;
	// What a ring has said of a page is (id, offset).
	return s.layout.dirty_ring && (r.now->flags & MEMSLOT_ENTRY_LOG_DIRTY_PAGES) &&
	       (r.old->id != r.now->id || r.gfn - r.old->gfn != r.gfn - r.now->gfn);
}

bool surveyor::is_zapped(u32 as, u64 gfn) const
{
	return std::any_of(p.zaps, p.zaps + p.nr_zaps, [=](const plan_zap &zap) {
		return zap.address_space == as && gfn >= zap.gfn && gfn - zap.gfn < zap.npages;
	});
}

std::vector<run> surveyor::survey(u32 as) const
{
	std::vector<u64> bound = bounds(as);
	std::vector<run> runs;

	for (size_t i = 0; i + 1 < bound.size(); i++) {
		run r = {
			.gfn = bound[i],
			.end = bound[i + 1],
			.old = holder(s.layout.slots, as, bound[i]),
			.now = holder(v.after, as, bound[i]),
			.counts = false,
			.cut = false,
			.must_zap = false,
			.zapped = is_zapped(as, bound[i]),
		};
		for (const plan_region *slot : {r.old, r.now}) {
			if (!slot)
				continue;
			r.counts |= kind(*slot) != PLAN_NOTHING;
			r.cut |= kind(*slot) != PLAN_NOTHING && kind(*slot) != PLAN_REFLAG;
		}
		r.must_zap = must_zap(r);
		runs.push_back(r);
	}
	return runs;
}

void surveyor::check_order() const
{
	for (u32 i = 0; i < p.nr_segments; i++) {
		const plan_segment &here = p.segments[i];
		expect(here.npages && here.address_space < s.rules.address_spaces,
		       "an empty segment");
		if (!i)
			continue;
		const plan_segment &last = p.segments[i - 1];
		std::pair<u32, u64> end = {last.address_space, last.gfn + last.npages};
		std::pair<u32, u64> start = {here.address_space, here.gfn};
		expect(end <= start, "segments are not in order");
		expect(end < start || here.before != last.before || here.after != last.after,
		       "segments are one");
	}
	for (u32 i = 0; i < p.nr_zaps; i++) {
		const plan_zap &here = p.zaps[i];
		expect(here.npages && here.address_space < s.rules.address_spaces, "an empty zap");
		if (!i)
			continue;
		const plan_zap &last = p.zaps[i - 1];
		expect(std::pair<u32, u64>{last.address_space, last.gfn + last.npages} <
			       std::pair<u32, u64>{here.address_space, here.gfn},
		       "zaps are not in order or touch");
	}
}

u32 surveyor::uncovered_segments() const
{
	return static_cast<u32>(std::count_if(
		p.segments, p.segments + p.nr_segments, [](const plan_segment &segment) {
			return segment.before != PLAN_NONE && segment.after == PLAN_NONE;
		}));
}

void surveyor::check_segments(u32 as, const std::vector<run> &runs) const
{
	for (const run &r : runs) {
		const plan_segment *holds = nullptr;
		for (u32 i = 0; i < p.nr_segments; i++)
			if (p.segments[i].address_space == as && r.gfn >= p.segments[i].gfn &&
			    r.gfn - p.segments[i].gfn < p.segments[i].npages)
				holds = &p.segments[i];
		equal(!!holds, r.cut, "is there a segment");
		if (!holds)
			continue;
		equal(holds->before != PLAN_NONE, !!r.old, "has a segment an old slot");
		equal(holds->after != PLAN_NONE, !!r.now, "has a segment a new slot");
		if (r.old)
			expect(holds->before < p.nr_changes &&
				       same(p.changes[holds->before].before, *r.old),
			       "a segment has another old slot");
		if (r.now)
			expect(holds->after < p.nr_changes &&
				       same(p.changes[holds->after].after, *r.now),
			       "a segment has another new slot");
		equal(holds->kept, r.old && r.now && hva_of(*r.old, r.gfn) == hva_of(*r.now, r.gfn),
		      "is a segment kept");
	}
}

// A page that KVM may have mapped as a whole: it lies in one slot, and guest and
// host agree about its alignment.
bool may_be_mapped_huge(const plan_region &slot, u64 first, u64 npages)
{
	return first >= slot.gfn && first + npages <= end_of(slot) &&
	       hva_of(slot, first) % (npages * page) == 0;
}

// Returns the number of boundaries through huge pages.
u32 surveyor::check_zaps(const std::vector<run> &runs) const
{
	std::vector<std::pair<u64, u64>> broken; // huge pages that must not stay
	u64 boundaries = 0, extra = 0;

	for (size_t i = 1; i < runs.size(); i++) {
		const run &left = runs[i - 1], &right = runs[i];
		if (!right.cut || !right.old || left.old != right.old || left.now == right.now)
			continue;
		boundaries++;
		for (u64 npages : huge_sizes) {
			u64 first = right.gfn / npages * npages;
			if (first != right.gfn && may_be_mapped_huge(*right.old, first, npages))
				broken.emplace_back(first, first + npages);
		}
	}
	for (const auto &[first, end] : broken)
		expect(std::any_of(runs.begin(), runs.end(),
				   [first = first, end = end](const run &r) {
					   return r.zapped && r.gfn < end && r.end > first;
				   }),
		       "a huge page stays mapped over a new boundary");
	for (const run &r : runs) {
		expect(r.zapped || !r.must_zap, "a translation stays that must not");
		if (!r.zapped || r.must_zap)
			continue;
		expect(std::any_of(broken.begin(), broken.end(),
				   [&](const auto &b) {
					   return r.gfn >= b.first && r.end <= b.second;
				   }),
		       "a translation goes without need");
		extra += r.end - r.gfn;
	}
	expect(extra <= boundaries, "more translations than one go per boundary");
	return broken.size();
}

void surveyor::check(findings &found)
{
	u64 kept = 0, remapped = 0, removed = 0, added = 0;

	expect(p.nr_changes == 0 || (static_cast<void *>(p.changes + p.nr_changes) <= p.segments &&
				     static_cast<void *>(p.segments + p.nr_segments) <= p.zaps),
	       "arrays run into each other");
	check_order();
	for (u32 as = 0; as < s.rules.address_spaces; as++) {
		std::vector<run> runs = survey(as);
		for (const run &r : runs) {
			u64 pages = r.counts ? r.end - r.gfn : 0;
			if (!r.old)
				added += pages;
			else if (!r.now)
				removed += pages;
			else if (hva_of(*r.old, r.gfn) != hva_of(*r.now, r.gfn))
				remapped += pages;
			else
				kept += pages;
			found.kept += r.cut && r.old && !r.zapped;
			found.ring_zaps += r.must_zap && r.now && r.old->flags == r.now->flags &&
					   hva_of(*r.old, r.gfn) == hva_of(*r.now, r.gfn);
		}
		check_segments(as, runs);
		found.cuts += check_zaps(runs);
	}
	equal(p.totals.pages_kept, kept, "pages kept");
	equal(p.totals.pages_remapped, remapped, "pages remapped");
	equal(p.totals.pages_removed, removed, "pages removed");
	equal(p.totals.pages_added, added, "pages added");
	equal(p.nr_uncovered > 0, removed > 0, "uncovers");
	equal(p.nr_uncovered, uncovered_segments(), "uncovered segments");
}

} // namespace

findings check_scenario(scenario s)
{
	findings found;
	found.refused_entries = std::erase_if(
		s.entries, [&](const memslot_entry &e) { return !check_entry(e, s.rules); });

	verdict v = judge(s);
	made_plan b(s);
	equal(-b.err, -v.err, "errno");
	equal(b.error.index, v.blame.index, "blamed entry");
	equal(b.error.reason, v.blame.reason, "reason");
	found.reason = v.blame.reason;
	if (v.err) {
		expect(!b.plan.memory, "a refused batch leaves a plan");
		return found;
	}
	found.dropped = v.dropped.size();
	found.changes = b.plan.nr_changes;
	found.kinds = check_changes(s, b.plan, v);
	check_layout(carry_out(b.plan, s.layout.slots, s.layout.slots), v.after);
	surveyor(s, b.plan, v).check(found);
	return found;
}
