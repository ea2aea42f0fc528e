// SPDX-License-Identifier: GPL-2.0
#include "batch.h"

#include <linux/overflow.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

static int batch_grow(struct batch *batch, u32 count)
{
	struct memslot_entry *entry;
	u32 capacity;

	if (count <= batch->capacity)
		return 0;
	capacity = min_t(u32, max_t(u32, count, 2 * batch->capacity), BATCH_MAX_ENTRIES);
	entry = kvmalloc_array(capacity, sizeof(*entry), GFP_KERNEL_ACCOUNT);
	if (!entry)
		return -ENOMEM;
	if (batch->count)
		memcpy(entry, batch->entry, batch->count * sizeof(*entry));
	kvfree(batch->entry);
	batch->entry = entry;
	batch->capacity = capacity;
	return 0;
}

static int copy_entry(struct memslot_entry *entry, const struct batch_input *input, u32 i,
		      u32 *reason)
{
	u64 address;
	int err;

	if (check_add_overflow(input->entries, (u64)i * input->entry_size, &address))
		err = -EFAULT;
	else if (input->entry_size == sizeof(*entry)) /* the usual case, and three times as fast */
		err = copy_from_user(entry, u64_to_user_ptr(address), sizeof(*entry)) ? -EFAULT : 0;
	else
		err = copy_struct_from_user(entry, sizeof(*entry), u64_to_user_ptr(address),
					    input->entry_size);
	if (err)
		*reason = err == -E2BIG ? MEMSLOT_REASON_ENTRY_TOO_NEW :
					  MEMSLOT_REASON_UNREADABLE;
	return err;
}

/**
 * batch_append - copy entries from the caller and check each by itself
 * @batch: where to; not changed on error
 * @input: the caller's array
 * @rules: what the VM allows
 * @error: out, on error; the index counts from the start of the batch
 *
 * Return: 0, -EINVAL, -E2BIG, -EFAULT, -EOPNOTSUPP, -EINTR or -ENOMEM.
 */
int batch_append(struct batch *batch, const struct batch_input *input,
		 const struct plan_rules *rules, struct plan_error *error)
{
	u32 i, reason;
	int err;

	*error = PLAN_NO_ERROR;
	if (!input->count)
		return 0;
	if (input->entry_size < BATCH_ENTRY_FIRST_SIZE)
		return plan_blame(error, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_ARGUMENT, -EINVAL);
	if (input->entry_size > PAGE_SIZE)
		return plan_blame(error, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_ARGUMENT, -E2BIG);
	if (input->count > BATCH_MAX_ENTRIES - batch->count)
		return plan_blame(error, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_TOO_MANY, -E2BIG);
	err = batch_grow(batch, batch->count + input->count);
	if (err)
		return plan_blame(error, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_MEMORY, err);

	for (i = 0; i < input->count; i++) {
		struct memslot_entry *entry = &batch->entry[batch->count + i];

		if (fatal_signal_pending(current))
			return -EINTR;
		err = copy_entry(entry, input, i, &reason);
		if (!err)
			err = plan_check_entry(entry, rules, &reason);
		if (err)
			return plan_blame(error, batch->count + i, reason, err);
		cond_resched();
	}
	batch->count += input->count;
	return 0;
}

/* Forget all entries from number @count on. */
void batch_truncate(struct batch *batch, u32 count)
{
	batch->count = min(batch->count, count);
}

void batch_free(struct batch *batch)
{
	kvfree(batch->entry);
	*batch = (struct batch){};
}
