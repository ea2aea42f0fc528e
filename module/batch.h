/* SPDX-License-Identifier: GPL-2.0 */
/* The entries of one open file that wait for a commit. */
#ifndef MEMSLOT_BATCH_H
#define MEMSLOT_BATCH_H

#include <linux/memslot.h>
#include <linux/stddef.h>

#include "plan.h"

/*
 * Most entries of a batch.  Bounds what a caller can make the kernel allocate:
 * about 7 MiB for a plan of this size, and 33 MiB if it also drops all slots
 * that there can be, charged to the caller's cgroup.
 */
#define BATCH_MAX_ENTRIES 16384

/* Size of an entry's first version, which old callers pass for ever */
#define BATCH_ENTRY_FIRST_SIZE offsetofend(struct memslot_entry, userspace_addr)

/* Entries passed plan_check_entry(); protected by the file's lock */
struct batch {
	struct memslot_entry *entry;
	u32 count;
	u32 capacity;
};

/* An array of entries in user memory */
struct batch_input {
	u64 entries;
	u32 count;
	u32 entry_size;
};

int batch_append(struct batch *batch, const struct batch_input *input,
		 const struct plan_rules *rules, struct plan_error *error);
void batch_truncate(struct batch *batch, u32 count);
void batch_free(struct batch *batch);

#endif /* MEMSLOT_BATCH_H */
