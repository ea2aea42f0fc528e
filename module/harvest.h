/* SPDX-License-Identifier: GPL-2.0 */
/* The caller's buffers for last dirty bitmaps. */
#ifndef MEMSLOT_HARVEST_H
#define MEMSLOT_HARVEST_H

#include <linux/mm_types.h>

#include "plan.h"

/* Most bytes that the buffers of one batch may have: bitmaps for 2 TiB */
#define HARVEST_MAX_BYTES (64UL << 20)

/* The pinned pages of all buffers of a batch, entry by entry */
struct harvest {
	struct page **pages;
	unsigned long nr_pages; /* accounted to the caller, and room in @pages */
	unsigned long pinned;
	bool written;
};

int harvest_pin(struct harvest *harvest, const struct plan_request *request,
		struct plan_error *error);
void harvest_write(struct harvest *harvest, const struct plan *plan);
void harvest_unpin(struct harvest *harvest);

#endif /* MEMSLOT_HARVEST_H */
