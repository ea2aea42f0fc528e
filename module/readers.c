// SPDX-License-Identifier: GPL-2.0
/*
 * Waiting for readers: the one grace period of a commit.
 *
 * KVM_PRE_FAULT_MEMORY retries a page fault inside one SRCU section until it
 * succeeds or a signal comes.  With the fence up it does not succeed, nor, in
 * some kernels, with a root that KVM has made obsolete; so the grace period would
 * not end.  While it lasts, a patrol makes the threads in that ioctl return: with
 * what they have done so far, or EINTR, as for a signal.
 */
#include "readers.h"

#include <linux/sched/signal.h>
#include <linux/srcu.h>
#include <linux/workqueue.h>

#include "compat/compat.h"

/*
 * Well above what a grace period takes by itself.  Who holds a vCPU's mutex for
 * so long is hardly in any other ioctl; if it is, or enters KVM_RUN just now, it
 * sees a signal that is none.
 */
#define PATROL_MS 20

struct patrol {
	struct delayed_work work;
	struct kvm *kvm;
};

/* All that it takes to make a thread leave a loop that looks for signals. */
static void interrupt(struct task_struct *task)
{
	set_tsk_thread_flag(task, TIF_NOTIFY_SIGNAL);
}

static void patrol(struct work_struct *work)
{
	struct patrol *self = container_of(to_delayed_work(work), struct patrol, work);
	struct kvm_vcpu *vcpu;
	unsigned long i;

	kvm_for_each_vcpu(i, vcpu, self->kvm) {
		struct task_struct *owner;

		if (compat_in_kvm_run(vcpu))
			continue;
		owner = compat_mutex_owner(&vcpu->mutex);
		if (!owner)
			continue;
		interrupt(owner);
		put_task_struct(owner);
	}
	schedule_delayed_work(&self->work, msecs_to_jiffies(PATROL_MS));
}

/**
 * readers_wait - wait until nobody has a slot of the old layout any more
 * @kvm: the VM
 * @parked: its vCPUs are; the caller has their mutexes
 */
void readers_wait(struct kvm *kvm, bool parked)
{
	struct patrol self = { .kvm = kvm };
	bool patrolled = COMPAT_PRE_FAULT_MEMORY && !parked;

	if (patrolled) {
		INIT_DELAYED_WORK_ONSTACK(&self.work, patrol);
		schedule_delayed_work(&self.work, msecs_to_jiffies(PATROL_MS));
	}
	synchronize_srcu_expedited(&kvm->srcu);
	if (patrolled) {
		cancel_delayed_work_sync(&self.work);
		destroy_delayed_work_on_stack(&self.work);
	}
}
