/* SPDX-License-Identifier: GPL-2.0 */
/*
 * From today's layout and a batch of entries to a plan, or to an error.
 *
 * Pure: no kernel state, no locks, no side effects but memory for the result.
 * The same source is compiled on the host for unit tests.
 */
#ifndef MEMSLOT_PLAN_H
#define MEMSLOT_PLAN_H

#include "plan_port.h"
#include <linux/memslot.h>

/* Index of "no change", for plan_segment.before and .after */
#define PLAN_NONE (~0U)

/**
 * struct plan_rules - what a VM and this machine allow; the same for as long as the VM lives
 * @max_slot: highest user slot id
 * @address_spaces: number of address spaces of the VM
 * @entry_flags: the MEMSLOT_ENTRY_* bits that work here
 * @max_pages: most pages of one slot
 * @max_gfn: highest gfn that the VM can address
 * @hva_end: first address above user space
 */
struct plan_rules {
	u32 max_slot;
	u32 address_spaces;
	u32 entry_flags;
	u64 max_pages;
	u64 max_gfn;
	u64 hva_end;
};

/**
 * struct plan_region - one memslot as the plan sees it
 * @address_space: 0 or 1
 * @id: slot id
 * @flags: bits MEMSLOT_ENTRY_*
 * @guest_memfd: backed by a guest_memfd, which no entry can describe
 * @gfn: first guest frame number
 * @npages: number of pages; 0 when the region is absent
 * @hva: host virtual address of the first page
 * @slot: what the layout calls the slot by; nothing here looks at it.  Filled in by
 *	plan_layout_find() and plan_layout_next(), and for a wanted slot by whoever
 *	carries the plan out
 */
struct plan_region {
	u32 address_space;
	u32 id;
	u32 flags;
	bool guest_memfd;
	u64 gfn;
	u64 npages;
	u64 hva;
	void *slot;
};

/**
 * struct plan_request - what the caller wants
 * @entries: the batch; each passed plan_check_entry()
 * @nr_entries: number of @entries
 * @replace_spaces: bit per address space in which the user slots that no entry
 *	names go away
 * @rules: what the entries were checked by
 */
struct plan_request {
	const struct memslot_entry *entries;
	u32 nr_entries;
	u32 replace_spaces;
	const struct plan_rules *rules;
};

/**
 * struct plan_error - which entry is to blame, and for what
 * @index: position of the entry, or MEMSLOT_NO_ENTRY
 * @reason: enum memslot_reason
 */
struct plan_error {
	u32 index;
	u32 reason;
};

#define PLAN_NO_ERROR ((struct plan_error){ MEMSLOT_NO_ENTRY, MEMSLOT_REASON_NONE })

/**
 * plan_blame - say what is wrong with which entry
 * @error: out
 * @index: position of the entry, or MEMSLOT_NO_ENTRY
 * @reason: enum memslot_reason
 * @err: a negative errno
 *
 * Return: @err.
 */
static inline int plan_blame(struct plan_error *error, u32 index, u32 reason, int err)
{
	error->index = index;
	error->reason = reason;
	return err;
}

enum plan_kind {
	PLAN_NOTHING, /* the entry equals today's slot; it is counted, and there is no change */
	PLAN_CREATE,
	PLAN_DELETE,
	PLAN_REPLACE, /* other size, hva or READONLY: KVM itself refuses this */
	PLAN_MOVE, /* only the gfn differs */
	PLAN_REFLAG, /* only dirty logging differs */
};

/**
 * struct plan_change - what happens to one slot id
 * @entry: the entry that asks for it; NULL for a slot that goes because of
 *	plan_request.replace_spaces
 * @kind: what
 * @before: today's slot; npages is 0 for a create
 * @after: the wanted slot; npages is 0 for a delete
 */
struct plan_change {
	const struct memslot_entry *entry;
	enum plan_kind kind;
	struct plan_region before;
	struct plan_region after;
};

/**
 * struct plan_segment - gfns that share one old and one new slot
 * @address_space: where
 * @gfn: first gfn
 * @npages: number of pages
 * @before: index of the change whose old slot held them, or PLAN_NONE
 * @after: index of the change whose new slot holds them, or PLAN_NONE
 * @kept: the host address stays
 *
 * Slots that are created, deleted, replaced or moved are cut into segments.
 */
struct plan_segment {
	u32 address_space;
	u32 before;
	u32 after;
	bool kept;
	u64 gfn;
	u64 npages;
};

/**
 * struct plan_zap - gfns whose translations must go
 * @address_space: where
 * @gfn: first gfn
 * @npages: number of pages
 */
struct plan_zap {
	u32 address_space;
	u64 gfn;
	u64 npages;
};

/*
 * Bytes that the arrays for one change need.  A plan has room for them inside, which spares
 * a batch of one an allocation.
 */
#define PLAN_ROOM 408

/* A half-open range, empty while start >= end */
struct plan_span {
	u64 start;
	u64 end;
};

/**
 * struct plan_totals - what a plan comes to
 * @count: how many entries, and slots that go unnamed, are of each kind
 * @pages_kept: pages whose gfn keeps its host address
 * @pages_remapped: pages whose gfn gets another host address
 * @pages_removed: pages whose gfn loses its slot
 * @pages_added: pages whose gfn had none
 */
struct plan_totals {
	u32 count[PLAN_REFLAG + 1];
	u64 pages_kept;
	u64 pages_remapped;
	u64 pages_removed;
	u64 pages_added;
};

/**
 * struct plan - everything that a commit has to do
 * @memory: holds all the arrays below
 * @nr_changes: number of elements in @changes
 * @changes: one per entry that does not equal its slot, in the order of the batch, and after
 *	them what goes besides
 * @nr_segments: number of elements in @segments
 * @segments: sorted by address space and gfn
 * @nr_zaps: number of elements in @zaps
 * @zaps: sorted, disjoint, not touching
 * @totals: for the report
 * @nr_uncovered: number of segments whose gfns have a slot today and none afterwards
 * @drops_slots: some slot is deleted, replaced or moved
 * @moves_log: some slot with a dirty log is moved
 * @hands_back: some entry asks for its slot's last dirty bitmap
 * @touched: bit per address space that changes
 * @fence_gfn: covers all slots but the reflagged ones, before and after, in
 *	gfns; empty if there are none
 * @fence_hva: the same in host virtual addresses
 * @room: enough for the arrays of one change
 */
struct plan {
	void *memory;
	u32 nr_changes;
	struct plan_change *changes;
	u32 nr_segments;
	struct plan_segment *segments;
	u32 nr_zaps;
	struct plan_zap *zaps;
	struct plan_totals totals;
	u32 nr_uncovered;
	bool drops_slots;
	bool moves_log;
	bool hands_back;
	u32 touched;
	struct plan_span fence_gfn;
	struct plan_span fence_hva;
	u64 room[PLAN_ROOM / sizeof(u64)];
};

/*
 * Today's layout.  The kernel answers from KVM's active memslots, a unit test
 * from an array.
 */
struct plan_layout;

/**
 * plan_layout_has_dirty_ring - does the VM report dirty pages as (slot id, offset)?
 * @layout: today's layout
 *
 * Return: whether.
 */
bool plan_layout_has_dirty_ring(const struct plan_layout *layout);

/**
 * plan_layout_find - look a slot up by its id
 * @layout: today's layout
 * @address_space: where to look
 * @id: slot id
 * @region: out, if there is one
 *
 * Return: whether there is such a slot.
 */
bool plan_layout_find(const struct plan_layout *layout, u32 address_space, u32 id,
		      struct plan_region *region);

/**
 * plan_layout_next - find the first slot in a range of gfns
 * @layout: today's layout
 * @address_space: where to look
 * @gfn: first gfn
 * @end: gfn after the last one
 * @region: out, if there is one: the lowest slot that reaches into the range
 *
 * Return: whether there is such a slot; KVM's internal ones count.
 */
bool plan_layout_next(const struct plan_layout *layout, u32 address_space, u64 gfn,
		      u64 end, struct plan_region *region);

int plan_check_entry(const struct memslot_entry *entry, const struct plan_rules *rules,
		     u32 *reason);
int plan_build(struct plan *plan, const struct plan_request *request,
	       const struct plan_layout *layout, struct plan_error *error);
void plan_free(struct plan *plan);

#endif /* MEMSLOT_PLAN_H */
