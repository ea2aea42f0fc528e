// SPDX-License-Identifier: GPL-2.0
#include "plan.h"

/* Huge page sizes that KVM maps, as log2 of 4 KiB pages */
static const unsigned int huge_shifts[] = { 9, 18 };

static u64 region_end(const struct plan_region *region)
{
	return region->gfn + region->npages;
}

/**
 * plan_check_entry - judge an entry by itself
 * @entry: what the caller wants
 * @rules: what is allowed
 * @reason: out, on error: enum memslot_reason
 *
 * Return: 0, -EINVAL or -EOPNOTSUPP.
 */
int plan_check_entry(const struct memslot_entry *entry, const struct plan_rules *rules,
		     u32 *reason)
{
	const u64 in_page = (1ULL << PLAN_PAGE_SHIFT) - 1, in_word = sizeof(u64) - 1;
	u64 npages = entry->memory_size >> PLAN_PAGE_SHIFT;

	if (entry->reserved)
		*reason = MEMSLOT_REASON_ARGUMENT;
	else if (entry->slot > rules->max_slot)
		*reason = MEMSLOT_REASON_SLOT_ID;
	else if (entry->address_space >= rules->address_spaces)
		*reason = MEMSLOT_REASON_ADDRESS_SPACE;
	else if (entry->flags & ~rules->entry_flags)
		*reason = MEMSLOT_REASON_FLAGS;
	else if (entry->dirty_bitmap & in_word)
		*reason = MEMSLOT_REASON_BITMAP_ALIGN;
	else if (entry->dirty_bitmap_size & in_word ||
		 !entry->dirty_bitmap != !entry->dirty_bitmap_size)
		*reason = MEMSLOT_REASON_BITMAP_SIZE;
	else if (entry->memory_size & in_page)
		*reason = MEMSLOT_REASON_SIZE_ALIGN;
	else if (!entry->memory_size)
		return 0;
	else if (entry->guest_phys_addr & in_page)
		*reason = MEMSLOT_REASON_GPA_ALIGN;
	else if (entry->userspace_addr & in_page)
		*reason = MEMSLOT_REASON_HVA_ALIGN;
	else if (npages > rules->max_pages)
		*reason = MEMSLOT_REASON_TOO_LARGE;
	else if (entry->guest_phys_addr + entry->memory_size < entry->guest_phys_addr ||
		 (entry->guest_phys_addr >> PLAN_PAGE_SHIFT) + npages - 1 > rules->max_gfn)
		*reason = MEMSLOT_REASON_GPA_RANGE;
	else if (entry->userspace_addr >= rules->hva_end ||
		 entry->memory_size > rules->hva_end - entry->userspace_addr)
		*reason = MEMSLOT_REASON_HVA_RANGE;
	else
		return 0;
	return *reason == MEMSLOT_REASON_FLAGS ? -EOPNOTSUPP : -EINVAL;
}

/* Where an entry stands in a sorted view of the batch */
struct plan_key {
	u64 major;
	u64 minor;
	u32 index;
};

static int compare_keys(const void *a, const void *b)
{
	const struct plan_key *x = a, *y = b;

	if (x->major != y->major)
		return x->major < y->major ? -1 : 1;
	if (x->minor != y->minor)
		return x->minor < y->minor ? -1 : 1;
	return x->index < y->index ? -1 : x->index > y->index;
}

/* Most batches are small, or their entries are in order: then nothing has to be sorted. */
static void sort_keys(struct plan_key *keys, u32 n)
{
	u32 i;

	for (i = 1; i < n; i++) {
		if (compare_keys(&keys[i - 1], &keys[i]) > 0) {
			plan_sort(keys, n, sizeof(*keys), compare_keys);
			return;
		}
	}
}

/* Where plan_build() keeps what it needs on the way */
struct plan_scratch {
	struct plan_key *ids; /* the entries, sorted by slot */
	u32 nr_ids;
	u32 nr_replaceable; /* today's user slots in address spaces that are replaced as a whole */
	u32 nr_named; /* those of them that an entry names */
	struct plan_key *places; /* room for two sides of all changes */
};

/* Is there an entry for this slot in the batch, sorted by slot? */
static bool names_slot(const struct plan_key *ids, u32 n, u32 address_space, u32 id)
{
	u32 low = 0, high = n;

	while (low < high) {
		u32 mid = low + (high - low) / 2;
		const struct plan_key *key = &ids[mid];

		if (key->major == address_space && key->minor == id)
			return true;
		if (key->major < address_space ||
		    (key->major == address_space && key->minor < id))
			low = mid + 1;
		else
			high = mid;
	}
	return false;
}

/* The lowest entry that names a slot which an entry before it names. */
static u32 first_duplicate(const struct plan_key *ids, u32 n)
{
	u32 first = MEMSLOT_NO_ENTRY;
	u32 i;

	for (i = 1; i < n; i++)
		if (ids[i].major == ids[i - 1].major && ids[i].minor == ids[i - 1].minor)
			first = min(first, ids[i].index);
	return first;
}

static enum plan_kind classify(const struct plan_region *old, const struct plan_region *new)
{
	u32 flags = old->flags ^ new->flags;

	if (!old->npages)
		return PLAN_CREATE;
	if (!new->npages)
		return PLAN_DELETE;
	if (old->npages != new->npages || old->hva != new->hva ||
	    (flags & MEMSLOT_ENTRY_READONLY))
		return PLAN_REPLACE;
	if (old->gfn != new->gfn)
		/* KVM's own move leaves the flags as they are */
		return flags ? PLAN_REPLACE : PLAN_MOVE;
	return flags ? PLAN_REFLAG : PLAN_NOTHING;
}

/*
 * Can the slot's last dirty bitmap be handed back, into the entry's buffer?  Not if the entry
 * changes nothing: harvest_write() finds buffers by changes.
 */
static int check_bitmap(const struct plan_change *change, const struct plan_layout *layout,
			u32 *reason)
{
	const struct memslot_entry *entry = change->entry;
	const struct plan_region *old = &change->before;
	bool logged = old->npages && old->flags & MEMSLOT_ENTRY_LOG_DIRTY_PAGES;

	if (plan_layout_has_dirty_ring(layout)) {
		*reason = MEMSLOT_REASON_DIRTY_RING;
		return -EOPNOTSUPP;
	}
	if (!logged || change->kind == PLAN_NOTHING)
		*reason = MEMSLOT_REASON_NO_DIRTY_LOG;
	else if (entry->dirty_bitmap_size / sizeof(u64) < (old->npages + 63) / 64)
		*reason = MEMSLOT_REASON_BITMAP_SIZE;
	else
		return 0;
	return -EINVAL;
}

/* Fills in plan->changes from the entries and today's slots. */
static int look_up(struct plan *plan, const struct plan_request *request,
		   struct plan_scratch *scratch, const struct plan_layout *layout,
		   struct plan_error *error)
{
	u32 i, reason;
	int err;

	for (i = 0; i < request->nr_entries; i++) {
		const struct memslot_entry *entry = &request->entries[i];
		struct plan_change *change = &plan->changes[i];
		struct plan_region *new = &change->after;
		bool exists;

		*change = (struct plan_change){ .entry = entry };
		exists = plan_layout_find(layout, entry->address_space, entry->slot,
					  &change->before);
		if (!exists && !entry->memory_size)
			return plan_blame(error, i, MEMSLOT_REASON_NO_SLOT, -ENOENT);
		if (exists && change->before.guest_memfd)
			return plan_blame(error, i, MEMSLOT_REASON_GUEST_MEMFD, -EOPNOTSUPP);
		if (exists && request->replace_spaces & 1U << entry->address_space)
			scratch->nr_named++;

		new->address_space = entry->address_space;
		new->id = entry->slot;
		if (entry->memory_size) {
			new->flags = entry->flags;
			new->gfn = entry->guest_phys_addr >> PLAN_PAGE_SHIFT;
			new->npages = entry->memory_size >> PLAN_PAGE_SHIFT;
			new->hva = entry->userspace_addr;
		}
		change->kind = classify(&change->before, new);
		plan->totals.count[change->kind]++;
		if (change->kind == PLAN_MOVE && new->flags & MEMSLOT_ENTRY_LOG_DIRTY_PAGES)
			plan->moves_log = true;
		plan_pause();
		if (!entry->dirty_bitmap)
			continue;
		err = check_bitmap(change, layout, &reason);
		if (err)
			return plan_blame(error, i, reason, err);
		plan->hands_back = true;
	}
	plan->nr_changes = request->nr_entries;
	return 0;
}

/* The first user slot of an address space at or above a gfn */
static bool next_user_slot(const struct plan_request *request, const struct plan_layout *layout,
			   u32 address_space, u64 gfn, struct plan_region *slot)
{
	while (plan_layout_next(layout, address_space, gfn, ~0ULL, slot)) {
		if (slot->id <= request->rules->max_slot)
			return true;
		gfn = region_end(slot);
	}
	return false;
}

/*
 * Steps from user slot to user slot of the address spaces that are replaced as
 * a whole; begins with an empty @slot.
 */
static bool next_replaceable(const struct plan_request *request, const struct plan_layout *layout,
			     struct plan_region *slot)
{
	u32 address_space = slot->address_space;
	u64 gfn = region_end(slot);

	for (; address_space < request->rules->address_spaces; address_space++, gfn = 0)
		if (request->replace_spaces & 1U << address_space &&
		    next_user_slot(request, layout, address_space, gfn, slot))
			return true;
	return false;
}

static u32 count_replaceable(const struct plan_request *request, const struct plan_layout *layout)
{
	struct plan_region slot = {};
	u32 n = 0;

	while (next_replaceable(request, layout, &slot)) {
		n++;
		plan_pause();
	}
	return n;
}

/* Slots that no entry names, in address spaces that are replaced as a whole */
static int drop_unnamed(struct plan *plan, const struct plan_request *request,
			const struct plan_scratch *scratch, const struct plan_layout *layout,
			struct plan_error *error)
{
	struct plan_region slot = {};

	/* All are named, as is usual, or nothing is replaced. */
	if (scratch->nr_named == scratch->nr_replaceable)
		return 0;
	while (next_replaceable(request, layout, &slot)) {
		plan_pause();
		if (names_slot(scratch->ids, scratch->nr_ids, slot.address_space, slot.id))
			continue;
		if (slot.guest_memfd)
			return plan_blame(error, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_GUEST_MEMFD,
				    -EOPNOTSUPP);
		plan->changes[plan->nr_changes++] = (struct plan_change){
			.kind = PLAN_DELETE,
			.before = slot,
			.after = { .address_space = slot.address_space, .id = slot.id },
		};
		plan->totals.count[PLAN_DELETE]++;
	}
	return 0;
}

/*
 * Collects one side of the changes, sorted by place.  Without @all only those
 * that the segments are about.
 */
static u32 collect_places(const struct plan *plan, struct plan_key *places, bool new, bool all)
{
	u32 i, n = 0;

	for (i = 0; i < plan->nr_changes; i++) {
		const struct plan_change *change = &plan->changes[i];
		const struct plan_region *region = new ? &change->after : &change->before;

		if (!region->npages)
			continue;
		if (!all && change->kind == PLAN_REFLAG)
			continue;
		places[n++] = (struct plan_key){ region->address_space, region->gfn, i };
	}
	sort_keys(places, n);
	return n;
}

/* Do two of the first @limit entries overlap in the final layout? */
static bool entries_overlap(const struct plan *plan, const struct plan_key *places, u32 n,
			    u32 limit)
{
	u64 address_space = 0, end = 0;
	u32 i;

	for (i = 0; i < n; i++) {
		if (places[i].index >= limit)
			continue;
		if (places[i].major == address_space && places[i].minor < end)
			return true;
		address_space = places[i].major;
		end = region_end(&plan->changes[places[i].index].after);
	}
	return false;
}

/* The lowest entry that overlaps one before it. */
static u32 first_overlap(const struct plan *plan, const struct plan_key *places, u32 n)
{
	u32 low = 0, high = plan->nr_changes;

	if (!entries_overlap(plan, places, n, high))
		return MEMSLOT_NO_ENTRY;
	/* The first low entries do not overlap, the first high ones do. */
	while (high - low > 1) {
		u32 mid = low + (high - low) / 2;

		if (entries_overlap(plan, places, n, mid))
			high = mid;
		else
			low = mid;
	}
	return high - 1;
}

/* Does a region overlap a slot that the batch leaves alone? */
static bool overlaps_staying(const struct plan_region *region, const struct plan_request *request,
			     const struct plan_scratch *scratch, const struct plan_layout *layout)
{
	bool replaces = request->replace_spaces & 1U << region->address_space;
	u64 gfn = region->gfn, end = region_end(region);
	struct plan_region slot;

	while (gfn < end &&
	       plan_layout_next(layout, region->address_space, gfn, end, &slot)) {
		bool goes = replaces && slot.id <= request->rules->max_slot;

		if (!goes &&
		    !names_slot(scratch->ids, scratch->nr_ids, slot.address_space, slot.id))
			return true;
		gfn = region_end(&slot);
	}
	return false;
}

static int check_overlaps(const struct plan *plan, const struct plan_request *request,
			  const struct plan_scratch *scratch, const struct plan_layout *layout,
			  struct plan_error *error)
{
	u32 n = collect_places(plan, scratch->places, true, true);
	u32 first = first_overlap(plan, scratch->places, n);
	u32 i;

	for (i = 0; i < min(plan->nr_changes, first); i++) {
		const struct plan_change *change = &plan->changes[i];

		if (change->after.npages && change->kind != PLAN_NOTHING &&
		    change->kind != PLAN_REFLAG &&
		    overlaps_staying(&change->after, request, scratch, layout))
			return plan_blame(error, i, MEMSLOT_REASON_OVERLAP_SLOT, -EEXIST);
		plan_pause();
	}
	if (first != MEMSLOT_NO_ENTRY)
		return plan_blame(error, first, MEMSLOT_REASON_OVERLAP_ENTRY, -EEXIST);
	return 0;
}

/* What equals today's slot was there to be checked, and is no work for anybody. */
static void forget_unchanged(struct plan *plan)
{
	u32 i, n = 0;

	for (i = 0; i < plan->nr_changes; i++) {
		plan_pause();
		if (plan->changes[i].kind == PLAN_NOTHING)
			continue;
		if (n < i)
			plan->changes[n] = plan->changes[i];
		n++;
	}
	plan->nr_changes = n;
}

/* One side of the sweep: sorted places and how far they were walked. */
struct sweep_side {
	const struct plan_key *places;
	u32 n;
	u32 next;
	bool new;
};

static const struct plan_region *sweep_region(const struct plan *plan,
					      const struct sweep_side *side,
					      u32 address_space)
{
	const struct plan_change *change;

	if (side->next == side->n || side->places[side->next].major != address_space)
		return NULL;
	change = &plan->changes[side->places[side->next].index];
	return side->new ? &change->after : &change->before;
}

/* Where does the segment that begins at @gfn end, as far as @region goes? */
static u64 sweep_limit(const struct plan_region *region, u64 gfn, u64 end)
{
	if (!region)
		return end;
	return min(end, gfn < region->gfn ? region->gfn : region_end(region));
}

static bool sweep_covers(const struct plan_region *region, u64 gfn)
{
	return region && region->gfn <= gfn;
}

static u64 hva_of(const struct plan_region *region, u64 gfn)
{
	return region->hva + ((gfn - region->gfn) << PLAN_PAGE_SHIFT);
}

static void sweep_address_space(struct plan *plan, struct sweep_side *olds,
				struct sweep_side *news, u32 address_space)
{
	u64 gfn = 0;

	for (;;) {
		const struct plan_region *old = sweep_region(plan, olds, address_space);
		const struct plan_region *new = sweep_region(plan, news, address_space);
		struct plan_segment *segment = &plan->segments[plan->nr_segments];
		u64 end;

		if (!old && !new)
			return;
		gfn = max(gfn, min(old ? old->gfn : ~0ULL, new ? new->gfn : ~0ULL));
		end = sweep_limit(new, gfn, sweep_limit(old, gfn, ~0ULL));

		if (sweep_covers(old, gfn) || sweep_covers(new, gfn)) {
			*segment = (struct plan_segment){
				.address_space = address_space,
				.gfn = gfn,
				.npages = end - gfn,
				.before = PLAN_NONE,
				.after = PLAN_NONE,
			};
			if (sweep_covers(old, gfn))
				segment->before = olds->places[olds->next].index;
			if (sweep_covers(new, gfn))
				segment->after = news->places[news->next].index;
			segment->kept = sweep_covers(old, gfn) && sweep_covers(new, gfn) &&
					hva_of(old, gfn) == hva_of(new, gfn);
			plan->nr_segments++;
		}
		if (old && end == region_end(old))
			olds->next++;
		if (new && end == region_end(new))
			news->next++;
		gfn = end;
	}
}

/* Can the translations of a kept segment stay as they are? */
static bool keeps_translations(const struct plan_segment *segment,
			       const struct plan_region *old, const struct plan_region *new,
			       bool dirty_ring)
{
	if (!segment->kept || old->flags != new->flags)
		return false;
	/*
	 * A dirty ring names a page by slot id and offset as of the write that
	 * faulted: the next write has to fault again to be pushed anew.
	 */
	return !(dirty_ring && (new->flags & MEMSLOT_ENTRY_LOG_DIRTY_PAGES) &&
		 (old->id != new->id || old->gfn != new->gfn));
}

/* Could a huge page of @old span gfn - 1 and gfn?  KVM's lpage_info rules. */
static bool huge_page_spans(const struct plan_region *old, u64 gfn)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(huge_shifts); i++) {
		u64 pages = 1ULL << huge_shifts[i];
		u64 first = gfn & ~(pages - 1);

		if (first != gfn && first >= old->gfn &&
		    first + pages <= region_end(old) &&
		    !((old->gfn ^ (old->hva >> PLAN_PAGE_SHIFT)) & (pages - 1)))
			return true;
	}
	return false;
}

static void add_zap(struct plan *plan, u32 address_space, u64 gfn, u64 npages)
{
	struct plan_zap *last;

	if (plan->nr_zaps) {
		last = &plan->zaps[plan->nr_zaps - 1];
		if (last->address_space == address_space && last->gfn + last->npages == gfn) {
			last->npages += npages;
			return;
		}
	}
	plan->zaps[plan->nr_zaps++] = (struct plan_zap){ address_space, gfn, npages };
}

/* Sums the segments up and decides what to zap. */
static void judge_segments(struct plan *plan, const struct plan_layout *layout)
{
	bool dirty_ring = plan_layout_has_dirty_ring(layout);
	bool previous_stays = false;
	u32 i;

	for (i = 0; i < plan->nr_segments; i++) {
		const struct plan_segment *segment = &plan->segments[i];
		const struct plan_region *old, *new;
		bool stays;

		if (segment->before == PLAN_NONE) {
			plan->totals.pages_added += segment->npages;
			previous_stays = false;
			continue;
		}
		old = &plan->changes[segment->before].before;
		if (segment->after == PLAN_NONE) {
			plan->totals.pages_removed += segment->npages;
			plan->nr_uncovered++;
			stays = false;
		} else {
			new = &plan->changes[segment->after].after;
			if (segment->kept)
				plan->totals.pages_kept += segment->npages;
			else
				plan->totals.pages_remapped += segment->npages;
			stays = keeps_translations(segment, old, new, dirty_ring);
		}

		if (!stays)
			add_zap(plan, segment->address_space, segment->gfn, segment->npages);
		else if (previous_stays && segment->before == plan->segments[i - 1].before &&
			 huge_page_spans(old, segment->gfn))
			/*
			 * The old slot was cut here.  One gfn is enough: zapping
			 * it takes the whole huge page with it, if there is one.
			 */
			add_zap(plan, segment->address_space, segment->gfn, 1);
		previous_stays = stays;
	}
}

static void widen(struct plan *plan, const struct plan_region *region)
{
	struct plan_span *gfn = &plan->fence_gfn, *hva = &plan->fence_hva;
	u64 hva_end = region->hva + (region->npages << PLAN_PAGE_SHIFT);

	if (!region->npages)
		return;
	gfn->start = min(gfn->start, region->gfn);
	gfn->end = max(gfn->end, region_end(region));
	hva->start = min(hva->start, region->hva);
	hva->end = max(hva->end, hva_end);
}

static void summarize(struct plan *plan)
{
	u32 i;

	plan->fence_gfn = (struct plan_span){ ~0ULL, 0 };
	plan->fence_hva = (struct plan_span){ ~0ULL, 0 };
	for (i = 0; i < plan->nr_changes; i++) {
		const struct plan_change *change = &plan->changes[i];

		plan->touched |= 1U << change->after.address_space;
		if (change->kind == PLAN_REFLAG) {
			plan->totals.pages_kept += change->after.npages;
			continue;
		}
		widen(plan, &change->before);
		widen(plan, &change->after);
		if (change->kind != PLAN_CREATE)
			plan->drops_slots = true;
	}
}

static void build_segments(struct plan *plan, const struct plan_request *request,
			   const struct plan_layout *layout, struct plan_key *places)
{
	struct sweep_side olds = { .places = places, .new = false };
	struct sweep_side news = { .new = true };
	u32 address_space;

	olds.n = collect_places(plan, places, false, false);
	news.places = places + olds.n;
	news.n = collect_places(plan, places + olds.n, true, false);

	for (address_space = 0; address_space < request->rules->address_spaces; address_space++)
		sweep_address_space(plan, &olds, &news, address_space);
	judge_segments(plan, layout);
}

/*
 * One allocation for everything.  Each segment but an address space's last
 * ends where a region starts or ends, and zaps are no more than segments.
 */
static int allocate(struct plan *plan, struct plan_scratch *scratch, u32 changes)
{
	const size_t of_segments = 4 * sizeof(*plan->segments), of_zaps = 4 * sizeof(*plan->zaps);
	const size_t of_ids = sizeof(*scratch->ids), of_places = 2 * sizeof(*scratch->places);
	size_t bytes = changes * (sizeof(*plan->changes) + of_segments + of_zaps + of_ids +
				  of_places);
	char *memory = (char *)plan->room;

	if (bytes > sizeof(plan->room))
		memory = plan_alloc(bytes);
	if (!memory)
		return -ENOMEM;
	plan->memory = memory;
	plan->changes = (void *)memory;
	memory += changes * sizeof(*plan->changes);
	plan->segments = (void *)memory;
	memory += changes * of_segments;
	plan->zaps = (void *)memory;
	memory += changes * of_zaps;
	scratch->ids = (void *)memory;
	memory += changes * of_ids;
	scratch->places = (void *)memory;
	return 0;
}

/**
 * plan_build - find out what a batch has to do
 * @plan: out; to be given to plan_free() on success
 * @request: the batch, and what else shall go
 * @layout: today's slots
 * @error: out, on error: the entry and the reason
 *
 * Errors, the first of: an entry that names a slot again (-EINVAL); one that
 * deletes a missing slot (-ENOENT), names one with a guest_memfd (-EOPNOTSUPP)
 * or asks for a dirty bitmap that cannot be had (-EINVAL, -EOPNOTSUPP); a slot
 * with a guest_memfd that would go unnamed (-EOPNOTSUPP); an entry that
 * overlaps one before it or a slot that stays (-EEXIST).  Of several entries
 * with the same kind of error the lowest is named.
 *
 * Return: 0, one of these, or -ENOMEM.
 */
int plan_build(struct plan *plan, const struct plan_request *request,
	       const struct plan_layout *layout, struct plan_error *error)
{
	struct plan_scratch scratch = { .nr_ids = request->nr_entries };
	u32 i, duplicate, changes;
	int err;

	/* The room is large, and allocate() needs no zeroes in it. */
	memset(plan, 0, offsetof(struct plan, room));
	*error = PLAN_NO_ERROR;
	scratch.nr_replaceable = count_replaceable(request, layout);
	changes = request->nr_entries + scratch.nr_replaceable;
	if (!changes)
		return 0;
	err = allocate(plan, &scratch, changes);
	if (err)
		return plan_blame(error, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_MEMORY, err);

	for (i = 0; i < request->nr_entries; i++) {
		const struct memslot_entry *entry = &request->entries[i];

		scratch.ids[i] = (struct plan_key){ entry->address_space, entry->slot, i };
	}
	sort_keys(scratch.ids, scratch.nr_ids);
	duplicate = first_duplicate(scratch.ids, scratch.nr_ids);
	if (duplicate != MEMSLOT_NO_ENTRY) {
		err = plan_blame(error, duplicate, MEMSLOT_REASON_DUPLICATE, -EINVAL);
		goto out;
	}

	err = look_up(plan, request, &scratch, layout, error);
	if (err)
		goto out;
	err = drop_unnamed(plan, request, &scratch, layout, error);
	if (err)
		goto out;
	err = check_overlaps(plan, request, &scratch, layout, error);
	if (err)
		goto out;
	forget_unchanged(plan);
	build_segments(plan, request, layout, scratch.places);
	summarize(plan);
out:
	if (err)
		plan_free(plan);
	return err;
}

/**
 * plan_free - release what a plan holds
 * @plan: a plan, or all zero; good for another plan_build() or plan_free()
 */
void plan_free(struct plan *plan)
{
	if (plan->memory != plan->room)
		plan_release(plan->memory);
	plan->memory = NULL;
	plan->nr_changes = 0;
}
