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

/* Well above what a grace period takes by itself. */
#define PATROL_MS 20

/* Threads that are watched at once; if there are more, they get their turn. */
#define SUSPECTS 16

struct patrol {
	struct delayed_work work;
	struct kvm *kvm;
	/* who held which vCPU's mutex outside KVM_RUN when the patrol last came by */
	struct suspect {
		struct kvm_vcpu *vcpu;
		struct task_struct *holder;
	} suspect[SUSPECTS];
	unsigned int suspects;
	/* the vCPU to go on with */
	unsigned long next;
};

/* Who holds the vCPU's mutex and is not in KVM_RUN, with a reference, or NULL. */
static struct task_struct *holder_outside_run(struct kvm_vcpu *vcpu)
{
	return compat_in_kvm_run(vcpu) ? NULL : compat_mutex_owner(&vcpu->mutex);
}

/*
 * Make a thread leave a loop that looks for signals.  Who sets the flag must wake
 * and kick, for nobody does who finds it set.  The kernel wakes sleepers that can
 * be interrupted only, by a function that is not for modules; others look again
 * and go on to sleep.
 */
static void interrupt(struct task_struct *task)
{
	if (!test_and_set_tsk_thread_flag(task, TIF_NOTIFY_SIGNAL) && !wake_up_process(task))
		kick_process(task);
}

/*
 * KVM_RUN has the mutex before it says so, and after, but not for long (on some
 * kernels for a grace period of RCU, where another thread than before runs the
 * vCPU).  Who is outside it twice in a row is hardly in any other ioctl than the
 * one that loops.
 */
static void judge_suspects(struct patrol *self)
{
	while (self->suspects) {
		struct suspect *before = &self->suspect[--self->suspects];
		struct task_struct *now = holder_outside_run(before->vcpu);

		if (now == before->holder)
			interrupt(now);
		if (now)
			put_task_struct(now);
		put_task_struct(before->holder);
	}
}

static void look_for_suspects(struct patrol *self)
{
	unsigned long vcpus = atomic_read(&self->kvm->online_vcpus);
	unsigned long n;

	for (n = 0; n < vcpus && self->suspects < SUSPECTS; n++) {
		struct kvm_vcpu *vcpu = kvm_get_vcpu(self->kvm, self->next++ % vcpus);
		struct task_struct *holder = holder_outside_run(vcpu);

		if (!holder)
			continue;
		self->suspect[self->suspects++] = (struct suspect){ vcpu, holder };
	}
}

static void patrol(struct work_struct *work)
{
	struct patrol *self = container_of(to_delayed_work(work), struct patrol, work);

	judge_suspects(self);
	look_for_suspects(self);
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
		while (self.suspects)
			put_task_struct(self.suspect[--self.suspects].holder);
	}
}
