/* SPDX-License-Identifier: GPL-2.0 */
/* Today's layout, told to the caller. */
#ifndef MEMSLOT_QUERY_H
#define MEMSLOT_QUERY_H

#include <linux/kvm_host.h>
#include <linux/memslot.h>

/* An array of entries in user memory */
struct query_output {
	u64 entries;
	u32 count;
	u32 entry_size;
};

int query_layout(struct kvm *kvm, const struct query_output *output,
		 struct memslot_query *reply);

#endif /* MEMSLOT_QUERY_H */
