// SPDX-License-Identifier: GPL-2.0
#include "deadline.h"

#include <linux/delay.h>
#include <linux/minmax.h>
#include <linux/sched/signal.h>
#include <linux/memslot.h>

/* Most microseconds between two looks at a lock that somebody holds for long */
#define LOOK_AGAIN_US 2000

/**
 * deadline_lock - take a mutex, or give up
 * @lock: the mutex
 * @deadline: in jiffies; there is one try at least
 * @reason: out, on -EBUSY: enum memslot_reason
 *
 * The kernel has no wait for a mutex that ends by itself, so this one looks again
 * and again: soon at first, for most holders are other commits and quick.
 *
 * Return: 0, -EBUSY, or -EINTR on a fatal signal.
 */
int deadline_lock(struct mutex *lock, unsigned long deadline, u32 *reason)
{
	unsigned int us = 20;

	while (!mutex_trylock(lock)) {
		if (time_after(jiffies, deadline)) {
			*reason = MEMSLOT_REASON_LOCKED;
			return -EBUSY;
		}
		if (fatal_signal_pending(current))
			return -EINTR;
		usleep_range(us, 2 * us);
		us = min(2 * us, LOOK_AGAIN_US);
	}
	return 0;
}
