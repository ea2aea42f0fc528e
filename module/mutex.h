/* SPDX-License-Identifier: GPL-2.0 */
/* What <linux/mutex.h> does not offer. */
#ifndef MEMSLOT_MUTEX_H
#define MEMSLOT_MUTEX_H

#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/sched/task.h>

/*
 * The task that holds @lock, with a reference, or NULL.  Its task_struct stays
 * valid under RCU: it was alive when it was seen as the owner.
 */
static inline struct task_struct *mutex_holder(struct mutex *lock)
{
	struct task_struct *owner;

	rcu_read_lock();
	/* the low three bits are flags, see kernel/locking/mutex.h */
	owner = (struct task_struct *)(atomic_long_read(&lock->owner) & ~0x7L);
	if (owner)
		get_task_struct(owner);
	rcu_read_unlock();
	return owner;
}

/*
 * Tell lockdep that @lock, just taken by trylock, is one of many under @outer:
 * it keeps count of those instead of giving each one of its 48 places.
 */
static inline void mutex_nest(struct mutex *lock, struct mutex *outer)
{
	lock_release(&lock->dep_map, _THIS_IP_);
	lock_acquire(&lock->dep_map, 0, 1, 0, 1, &outer->dep_map, _THIS_IP_);
}

#endif /* MEMSLOT_MUTEX_H */
