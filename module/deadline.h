/* SPDX-License-Identifier: GPL-2.0 */
/* When a commit that parks gives up, and locks that are waited for until then. */
#ifndef MEMSLOT_DEADLINE_H
#define MEMSLOT_DEADLINE_H

#include <linux/jiffies.h>
#include <linux/mutex.h>

/* What a commit that parks has for all that comes before its first visible step */
#define DEADLINE_MS 2000

static inline unsigned long deadline_from_now(void)
{
	return jiffies + msecs_to_jiffies(DEADLINE_MS);
}

int deadline_lock(struct mutex *lock, unsigned long deadline, u32 *reason);

#endif /* MEMSLOT_DEADLINE_H */
