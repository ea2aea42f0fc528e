// SPDX-License-Identifier: GPL-2.0
#include "harvest.h"

#include <linux/highmem.h>
#include <linux/kvm_host.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/userfaultfd_k.h>

#include "compat/compat.h"

/* Pages that are pinned before others may have mmap_lock */
#define PIN_CHUNK 512UL

static unsigned long pages_of(const struct memslot_entry *entry)
{
	if (!entry->dirty_bitmap)
		return 0;
	return DIV_ROUND_UP(offset_in_page(entry->dirty_bitmap) + entry->dirty_bitmap_size,
			    PAGE_SIZE);
}

static int count_pages(struct harvest *harvest, const struct plan_request *request,
		       struct plan_error *error)
{
	u64 bytes = 0;
	u32 i;

	for (i = 0; i < request->nr_entries; i++) {
		const struct memslot_entry *entry = &request->entries[i];

		if (entry->dirty_bitmap_size > HARVEST_MAX_BYTES - bytes)
			return plan_blame(error, i, MEMSLOT_REASON_BITMAP_SIZE, -E2BIG);
		bytes += entry->dirty_bitmap_size;
		harvest->nr_pages += pages_of(entry);
	}
	return 0;
}

/* Does userfaultfd provide some of these pages?  With mmap_lock. */
static bool are_to_come(unsigned long start, unsigned long end)
{
	struct vm_area_struct *vma;

	for (; start < end; start = vma->vm_end) {
		vma = find_vma(current->mm, start);
		if (!vma || vma->vm_start >= end)
			return false;
		if (userfaultfd_armed(vma))
			return true;
	}
	return false;
}

/*
 * Without sleeping in userfaultfd: the thread that would provide the page may be
 * this one.  So with mmap_lock held, but only there, for that makes all other
 * sleep deaf to fatal signals.
 */
static long pin(unsigned long address, unsigned long n, struct page **pages)
{
	/* for long: a commit waits for locks, and for readers that sleep */
	const unsigned int flags = FOLL_WRITE | FOLL_LONGTERM;
	bool to_come;
	long got = 0;

	if (mmap_read_lock_killable(current->mm))
		return -EINTR;
	to_come = are_to_come(address, address + (n << PAGE_SHIFT));
	if (to_come)
		got = compat_pin_user_pages(address, n, flags, pages);
	mmap_read_unlock(current->mm);
	return to_come ? got : pin_user_pages_fast(address, n, flags, pages);
}

static int pin_buffer(struct harvest *harvest, const struct memslot_entry *entry)
{
	unsigned long address = entry->dirty_bitmap & PAGE_MASK;
	unsigned long n = pages_of(entry);
	long got;

	while (n) {
		got = pin(address, min(n, PIN_CHUNK), harvest->pages + harvest->pinned);
		if (got <= 0)
			return got == -EINTR || got == -ENOMEM ? got : -EFAULT;
		harvest->pinned += got;
		address += (unsigned long)got << PAGE_SHIFT;
		n -= got;
		cond_resched();
	}
	return 0;
}

/**
 * harvest_pin - make sure that a batch's buffers can be written later
 * @harvest: out, all zero before; to be given to harvest_unpin(), also on error
 * @request: the batch, of the current process
 * @error: out, on error
 *
 * Faults pages in, so not to be called with a lock that serving a fault takes.
 *
 * Return: 0, -E2BIG, -EFAULT, -ENOMEM or -EINTR.
 */
int harvest_pin(struct harvest *harvest, const struct plan_request *request,
		struct plan_error *error)
{
	u32 i;
	int err;

	err = count_pages(harvest, request, error);
	if (err || !harvest->nr_pages) {
		harvest->nr_pages = 0;
		return err;
	}
	err = account_locked_vm(current->mm, harvest->nr_pages, true);
	if (err) {
		harvest->nr_pages = 0;
		return plan_blame(error, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_BITMAP_LOCKED, err);
	}
	harvest->pages = kvmalloc_array(harvest->nr_pages, sizeof(*harvest->pages),
					GFP_KERNEL_ACCOUNT);
	if (!harvest->pages)
		return plan_blame(error, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_MEMORY, -ENOMEM);

	for (i = 0; i < request->nr_entries; i++) {
		err = pin_buffer(harvest, &request->entries[i]);
		if (err == -EFAULT)
			return plan_blame(error, i, MEMSLOT_REASON_BITMAP_UNWRITABLE, err);
		if (err == -ENOMEM)
			return plan_blame(error, i, MEMSLOT_REASON_MEMORY, err);
		if (err)
			return err;
	}
	return 0;
}

static void write_buffer(struct page **pages, const struct memslot_entry *entry,
			 const struct kvm_memory_slot *slot)
{
	unsigned long left = kvm_dirty_bitmap_bytes((struct kvm_memory_slot *)slot);
	const char *from = (const char *)slot->dirty_bitmap;
	size_t offset = offset_in_page(entry->dirty_bitmap);

	while (left) {
		size_t n = min_t(size_t, left, PAGE_SIZE - offset);

		memcpy_to_page(*pages++, offset, from, n);
		from += n;
		left -= n;
		offset = 0;
		cond_resched();
	}
}

/**
 * harvest_write - hand the last dirty bitmaps back
 * @harvest: pinned
 * @plan: what was done; the old slots are still there, with their bitmaps
 *
 * Only after the grace period: until then a vCPU that found the old slot may
 * still set bits there.
 */
void harvest_write(struct harvest *harvest, const struct plan *plan)
{
	struct page **pages = harvest->pages;
	u32 i;

	if (!harvest->pinned)
		return;
	/*
	 * The changes come in the order of the entries, and so do the buffers: an entry with a
	 * buffer is a change, see check_bitmap() in plan.c.
	 */
	for (i = 0; i < plan->nr_changes; i++) {
		const struct memslot_entry *entry = plan->changes[i].entry;
		const struct kvm_memory_slot *old = plan->changes[i].before.slot;

		if (!entry || !entry->dirty_bitmap)
			continue;
		/* has one: the plan saw that it is logged, and the VM has no ring */
		if (!WARN_ON_ONCE(!old->dirty_bitmap))
			write_buffer(pages, entry, old);
		pages += pages_of(entry);
	}
	harvest->written = true;
}

void harvest_unpin(struct harvest *harvest)
{
	if (!harvest->nr_pages)
		return;
	if (harvest->pinned)
		unpin_user_pages_dirty_lock(harvest->pages, harvest->pinned, harvest->written);
	kvfree(harvest->pages);
	account_locked_vm(current->mm, harvest->nr_pages, false);
	*harvest = (struct harvest){};
}
