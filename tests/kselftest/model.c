// SPDX-License-Identifier: GPL-2.0
/* The layout as it should be, and its comparison with what the guest sees. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "helper.h"

/* An address space without slots is looked at in every so many pages: holes are slow. */
#define EMPTY_STEP 8

struct memslot_entry vm_region(const struct vm *vm, __u32 slot, unsigned int at,
			       unsigned int pages, unsigned int from)
{
	return (struct memslot_entry){
		.slot = slot,
		.guest_phys_addr = WINDOW + at * PAGE,
		.memory_size = pages * PAGE,
		.userspace_addr = (unsigned long)vm->pool + from * PAGE,
	};
}

struct memslot_entry in_smm(struct memslot_entry entry)
{
	entry.address_space = 1;
	return entry;
}

struct memslot_entry with_flags(struct memslot_entry entry, __u32 flags)
{
	entry.flags = flags;
	return entry;
}

struct memslot_entry absent(__u32 slot)
{
	return (struct memslot_entry){ .slot = slot };
}

const struct memslot_entry *model_find(const struct vm *vm, __u32 address_space, __u32 slot)
{
	unsigned int i;

	for (i = 0; i < vm->nr_slots; i++)
		if (vm->slots[i].slot == slot && vm->slots[i].address_space == address_space)
			return &vm->slots[i];
	return NULL;
}

void model_apply(struct vm *vm, const struct memslot_entry *entries, unsigned int count)
{
	unsigned int i, at;

	for (i = 0; i < count; i++) {
		const struct memslot_entry *slot =
			model_find(vm, entries[i].address_space, entries[i].slot);

		at = slot ? slot - vm->slots : vm->nr_slots;
		if (entries[i].memory_size) {
			if (at == VM_MAX_SLOTS) {
				fprintf(stderr, "# the model is full\n");
				abort();
			}
			vm->slots[at] = entries[i];
			vm->slots[at].dirty_bitmap = 0;
			vm->slots[at].dirty_bitmap_size = 0;
			vm->nr_slots += !slot;
		} else if (slot) {
			vm->slots[at] = vm->slots[--vm->nr_slots];
		}
	}
}

/* Writes the host address of each page of a slot into an array over the window. */
static void paint(__u64 *window, const struct memslot_entry *slot)
{
	const __u64 end = WINDOW + WINDOW_MAX_PAGES * PAGE;
	__u64 offset;

	for (offset = 0; offset < slot->memory_size; offset += PAGE) {
		const __u64 gpa = slot->guest_phys_addr + offset;

		if (gpa >= WINDOW && gpa < end)
			window[(gpa - WINDOW) / PAGE] = slot->userspace_addr + offset;
	}
}

static bool same_region(const struct memslot_entry *a, const struct memslot_entry *b)
{
	return a->flags == b->flags && a->guest_phys_addr == b->guest_phys_addr &&
	       a->memory_size == b->memory_size && a->userspace_addr == b->userspace_addr;
}

/* Counts the kind of change that an entry is; false if it is none. */
static bool count_change(const struct memslot_entry *old, const struct memslot_entry *new,
			 struct expectation *expectation)
{
	if (!old) {
		expectation->created++;
		return true;
	}
	if (!new->memory_size) {
		expectation->deleted++;
		return true;
	}
	if (same_region(old, new))
		return false;
	if (old->memory_size != new->memory_size || old->userspace_addr != new->userspace_addr ||
	    ((old->flags ^ new->flags) & MEMSLOT_ENTRY_READONLY)) {
		expectation->replaced++;
	} else if (old->guest_phys_addr == new->guest_phys_addr) {
		expectation->reflagged++;
	} else if (old->flags == new->flags) {
		expectation->moved++;
		expectation->moves_log |= old->flags & MEMSLOT_ENTRY_LOG_DIRTY_PAGES;
	} else {
		expectation->replaced++;
	}
	return true;
}

/* The runs of pages of a slot that have no memory afterwards */
static unsigned int count_uncovered(const __u64 *after, const struct memslot_entry *old)
{
	unsigned int page = (old->guest_phys_addr - WINDOW) / PAGE;
	const unsigned int end = page + old->memory_size / PAGE;
	unsigned int runs = 0;
	bool gone = false;

	if (old->guest_phys_addr < WINDOW || end > WINDOW_MAX_PAGES)
		return 0;
	for (; page < end; page++) {
		runs += !after[page] && !gone;
		gone = !after[page];
	}
	return runs;
}

void model_expect(const struct vm *vm, const struct memslot_entry *entries, unsigned int count,
		  struct expectation *expectation)
{
	static __u64 before[WINDOW_MAX_PAGES], after[WINDOW_MAX_PAGES];
	unsigned int address_space, i, page;
	bool hands_back = false;

	memset(expectation, 0, sizeof(*expectation));
	for (address_space = 0; address_space < MEMSLOT_MAX_ADDRESS_SPACES; address_space++) {
		memset(before, 0, sizeof(before));
		memset(after, 0, sizeof(after));
		for (i = 0; i < count; i++) {
			const struct memslot_entry *new = &entries[i];
			const struct memslot_entry *old =
				model_find(vm, new->address_space, new->slot);

			if (new->address_space != address_space ||
			    !count_change(old, new, expectation))
				continue;
			expectation->touched |= 1U << address_space;
			if (old)
				paint(before, old);
			paint(after, new);
		}
		for (i = 0; i < count; i++) {
			const struct memslot_entry *old =
				model_find(vm, entries[i].address_space, entries[i].slot);

			if (old && old->address_space == address_space &&
			    !same_region(old, &entries[i]))
				expectation->uncovered += count_uncovered(after, old);
		}
		for (page = 0; page < WINDOW_MAX_PAGES; page++) {
			if (before[page] && after[page] && before[page] == after[page])
				expectation->pages_kept++;
			else if (before[page] && after[page])
				expectation->pages_remapped++;
			else if (before[page])
				expectation->pages_removed++;
			else if (after[page])
				expectation->pages_added++;
		}
	}

	if (!expectation->touched)
		return;
	for (i = 0; i < count; i++)
		hands_back |= entries[i].dirty_bitmap;
	if (hands_back || expectation->moves_log) {
		expectation->strategy = MEMSLOT_STRATEGY_PARK;
		expectation->park_cause = MEMSLOT_PARK_DIRTY_LOG;
		return;
	}
	/* With all old slots still there, nothing can refer to one that is gone. */
	if (!expectation->deleted && !expectation->replaced && !expectation->moved) {
		expectation->strategy = MEMSLOT_STRATEGY_FENCE;
		return;
	}
	if (kvm_has_tdp_mmu()) {
		expectation->strategy = MEMSLOT_STRATEGY_FENCE;
	} else {
		expectation->strategy = MEMSLOT_STRATEGY_PARK;
		expectation->park_cause = MEMSLOT_PARK_SHADOW_PAGING;
	}
}

static bool check_address_space(struct vm *vm, unsigned int address_space)
{
	static __u32 words[WINDOW_MAX_PAGES];
	static __u64 window[WINDOW_MAX_PAGES];
	unsigned int i, step = EMPTY_STEP;

	memset(window, 0, sizeof(window));
	for (i = 0; i < vm->nr_slots; i++) {
		if (vm->slots[i].address_space != address_space)
			continue;
		paint(window, &vm->slots[i]);
		if (vm->slots[i].slot != GUEST_SLOT)
			step = 1;
	}
	if (!vm_scan_some(vm, address_space, WINDOW, (vm->window_pages + step - 1) / step,
			  step, words))
		return false;
	for (i = 0; i < vm->window_pages; i += step) {
		const __u32 expected = window[i] ? *(const __u32 *)window[i] : HOLE;

		if (words[i / step] == expected)
			continue;
		fprintf(stderr,
			"# address space %u, page %u of the window: the guest reads 0x%x, not 0x%x\n",
			address_space, i, words[i / step], expected);
		return false;
	}
	return true;
}

bool vm_check(struct vm *vm)
{
	unsigned int address_space;

	for (address_space = 0;
	     address_space < MEMSLOT_MAX_ADDRESS_SPACES && address_space < vm->vcpus;
	     address_space++)
		if (!check_address_space(vm, address_space))
			return false;
	return true;
}

static bool equal(const char *name, __u64 reported, __u64 expected)
{
	if (reported != expected)
		fprintf(stderr, "# the commit reports %s %llu, not %llu\n", name, reported,
			expected);
	return reported == expected;
}

bool reply_matches(const struct memslot_commit *reply, const struct expectation *expectation)
{
	const bool fenced = expectation->strategy == MEMSLOT_STRATEGY_FENCE;
	const __u32 tombstones = fenced && kvm_can_nest() ? expectation->uncovered : 0;
	bool ok = true;

	ok &= equal("failed_index", reply->failed_index, MEMSLOT_NO_ENTRY);
	ok &= equal("reason", reply->reason, MEMSLOT_REASON_NONE);
	ok &= equal("strategy", reply->strategy, expectation->strategy);
	ok &= equal("park_cause", reply->park_cause, expectation->park_cause);
	ok &= equal("created", reply->created, expectation->created);
	ok &= equal("deleted", reply->deleted, expectation->deleted);
	ok &= equal("replaced", reply->replaced, expectation->replaced);
	ok &= equal("moved", reply->moved, expectation->moved);
	ok &= equal("reflagged", reply->reflagged, expectation->reflagged);
	ok &= equal("pages_kept", reply->pages_kept, expectation->pages_kept);
	ok &= equal("pages_remapped", reply->pages_remapped, expectation->pages_remapped);
	ok &= equal("pages_removed", reply->pages_removed, expectation->pages_removed);
	ok &= equal("pages_added", reply->pages_added, expectation->pages_added);
	ok &= equal("tombstones", reply->tombstones, tombstones);
	ok &= equal("grace_periods", reply->grace_periods,
		    tombstones ? 2 : !!expectation->touched);
	ok &= equal("late_root", reply->late_root, 0);
	return ok;
}

bool vm_generations(const struct vm *vm, __u64 generations[MEMSLOT_MAX_ADDRESS_SPACES])
{
	struct memslot_commit reply;
	int err;

	err = device_commit(vm->device, MEMSLOT_COMMIT_TEST_ONLY, NULL, 0, &reply);
	if (err) {
		fprintf(stderr, "# an empty commit: %s\n", strerror(-err));
		return false;
	}
	memcpy(generations, reply.generation, sizeof(reply.generation));
	return true;
}

/*
 * The generation of an address space moves just when it changes; kernels whose
 * MMIO caches know only that of address space 0 need that one moved always.
 */
static bool generations_match(const __u64 *before, const __u64 *after, __u32 touched)
{
	unsigned int i;

	for (i = 0; i < MEMSLOT_MAX_ADDRESS_SPACES; i++) {
		if (touched & (1U << i) ? after[i] > before[i] :
					  after[i] == before[i] || (touched && !i))
			continue;
		fprintf(stderr, "# generation of address space %u: %llu before, %llu after\n", i,
			before[i], after[i]);
		return false;
	}
	return true;
}

static bool commit_matches(const struct vm *vm, __u32 flags, const struct memslot_entry *entries,
			   unsigned int count, const struct expectation *expectation,
			   struct memslot_commit *reply)
{
	int err = device_commit(vm->device, flags, entries, count, reply);

	if (err) {
		fprintf(stderr, "# commit with flags 0x%x: %s, entry %d, reason %u\n", flags,
			strerror(-err), (int)reply->failed_index, reply->reason);
		return false;
	}
	return reply_matches(reply, expectation);
}

bool vm_apply(struct vm *vm, const struct memslot_entry *entries, unsigned int count,
	      struct memslot_commit *reply)
{
	struct expectation expectation;
	__u64 before[MEMSLOT_MAX_ADDRESS_SPACES];
	bool fenced, ok;

	model_expect(vm, entries, count, &expectation);
	if (!vm_generations(vm, before) ||
	    !commit_matches(vm, MEMSLOT_COMMIT_TEST_ONLY, entries, count, &expectation, reply) ||
	    !generations_match(before, reply->generation, 0) ||
	    !equal("ns_fenced", reply->ns_fenced, 0) ||
	    !commit_matches(vm, 0, entries, count, &expectation, reply))
		return false;
	ok = generations_match(before, reply->generation, expectation.touched);
	/* KVM itself leaves translations alone when only dirty logging is switched. */
	fenced = expectation.created || expectation.deleted || expectation.replaced ||
		 expectation.moved;
	if (fenced && !reply->ns_fenced) {
		fprintf(stderr, "# the commit reports a fence of no length\n");
		ok = false;
	}
	model_apply(vm, entries, count);
	return vm_check(vm) && ok;
}
