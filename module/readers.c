// SPDX-License-Identifier: GPL-2.0
/*
 * Waiting for readers: each grace period of a commit.
 *
 * A moment without any reader, after the new layout is published, ends a grace period:
 * whoever had the old layout has gone by then.  vCPUs in guest mode are no readers, so
 * unless many vCPUs leave the guest all the time there is such a moment soon, and finding
 * it costs a few reads per CPU.  Where somebody reads at each look, SRCU is asked for a
 * grace period, as KVM's own ioctl asks each time.  That takes two switches to a worker and
 * back; and the worker may preempt the commit before that sleeps, which then waits until
 * all other threads, a time slice of each vCPU perhaps, have had their turn.
 *
 * KVM_PRE_FAULT_MEMORY retries a page fault inside one SRCU section until it
 * succeeds or a signal comes.  With the fence up it does not succeed, nor in a slot
 * that is marked invalid, nor, in some kernels, with a root that KVM has made
 * obsolete, as the zap for a late first shadow root does before the second of two
 * grace periods.  So a grace period would not end.  While it lasts, a delayed work
 * looks for threads in that ioctl and makes them return: with what they have done so
 * far, or EINTR, as for a signal.
 */
#include "readers.h"

#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/srcu.h>
#include <linux/workqueue.h>
#include <linux/memslot.h>

#include "compat/compat.h"
#include "mutex.h"

/* How often the work looks.  A grace period by itself takes much less. */
#define LOOK_MS 20

/* Most threads that are remembered from one look to the next; others get their turn later. */
#define MAX_SEEN 16

struct prefault_watch {
	struct delayed_work work;
	struct kvm *kvm;
	/* threads that held a vCPU's mutex outside KVM_RUN at the last look */
	struct seen_thread {
		struct kvm_vcpu *vcpu;
		struct task_struct *holder; /* with a reference */
	} seen[MAX_SEEN];
	unsigned int nr_seen;
	unsigned long next_vcpu; /* where the next look begins */
};

/* The thread that holds the vCPU's mutex outside KVM_RUN, with a reference, or NULL */
static struct task_struct *holder_outside_run(struct kvm_vcpu *vcpu)
{
	return compat_in_kvm_run(vcpu) ? NULL : mutex_holder(&vcpu->mutex);
}

/*
 * Make a thread leave a loop that looks for signals.
 *
 * Code that sets TIF_NOTIFY_SIGNAL has to wake or kick the thread as well: anybody
 * who finds the flag set already takes it that this was done, and does neither.  The
 * kernel's own function for that wakes only sleepers that can be interrupted, but is not
 * exported; wake_up_process() wakes any sleeper, and those that cannot be interrupted
 * check their condition and go on to sleep.
 *
 * The flag stays set until the thread returns to userspace.  A thread that is not in
 * the loop after all, but copies to or from user memory which waits for userfaultfd in
 * another ioctl of the vCPU, spins until the page comes: its page fault would sleep
 * interruptibly, so with the flag set it returns at once, and because only a fatal
 * signal ends a fault that the kernel itself has taken, it is tried again.
 */
static void interrupt(struct task_struct *task)
{
	if (!test_and_set_tsk_thread_flag(task, TIF_NOTIFY_SIGNAL) && !wake_up_process(task))
		kick_process(task);
}

/*
 * A thread in KVM_RUN holds the mutex for a moment before it sets wants_to_run, and
 * after it has cleared it; the first can take a grace period of RCU, where another
 * thread than before runs the vCPU.  So a thread is interrupted only if it held the
 * mutex outside KVM_RUN at two looks in a row: then it is most likely in the ioctl that
 * loops, for the other ones of a vCPU are short.
 */
static void interrupt_seen(struct prefault_watch *self)
{
	while (self->nr_seen) {
		struct seen_thread *before = &self->seen[--self->nr_seen];
		struct task_struct *now = holder_outside_run(before->vcpu);

		if (now == before->holder)
			interrupt(now);
		if (now)
			put_task_struct(now);
		put_task_struct(before->holder);
	}
}

static void remember_holders(struct prefault_watch *self)
{
	unsigned long nr_vcpus = atomic_read(&self->kvm->online_vcpus);
	unsigned long n;

	for (n = 0; n < nr_vcpus && self->nr_seen < MAX_SEEN; n++) {
		struct kvm_vcpu *vcpu = kvm_get_vcpu(self->kvm, self->next_vcpu++ % nr_vcpus);
		struct task_struct *holder = holder_outside_run(vcpu);

		if (!holder)
			continue;
		self->seen[self->nr_seen++] = (struct seen_thread){ vcpu, holder };
	}
}

static void look_for_prefault(struct work_struct *work)
{
	struct prefault_watch *self = container_of(to_delayed_work(work), struct prefault_watch,
						   work);

	interrupt_seen(self);
	remember_holders(self);
	schedule_delayed_work(&self->work, msecs_to_jiffies(LOOK_MS));
}

/* ---- A moment without readers ---- */

#ifdef CONFIG_TREE_SRCU
static bool can_count_readers(struct srcu_struct *srcu)
{
	return !compat_srcu_has_fast_readers(srcu);
}

/*
 * If this is false, there was a moment without any reader.  A reader counts itself in before
 * it reads and out after it, on whatever CPU it is then.  The ends are summed up first, so
 * that no end is counted whose beginning is not; the sums are equal only if every section
 * that was counted has ended.
 *
 * What such a section did is done: the barrier pairs with the one in srcu_read_unlock().
 * And a section that was not counted finds all that the caller has written before: the
 * barrier pairs with the one in srcu_read_lock() as well, between counting and reading.  It
 * is the barrier A of SRCU's own grace period.  SRCU has two counts so that new readers
 * cannot keep a grace period from ending; here both are summed up, so it does not matter
 * which of them a reader is about to use.  tests/model/readers.pml goes through it.
 */
static bool has_readers(struct srcu_struct *srcu)
{
	unsigned long begun = 0, ended = 0;
	int cpu, i;

	for_each_possible_cpu(cpu)
		for (i = 0; i < 2; i++)
			ended += COMPAT_SRCU_ENDED(per_cpu_ptr(srcu->sda, cpu), i);
	/* pairs with those in srcu_read_lock() and srcu_read_unlock() */
	smp_mb();
	for_each_possible_cpu(cpu)
		for (i = 0; i < 2; i++)
			begun += COMPAT_SRCU_BEGUN(per_cpu_ptr(srcu->sda, cpu), i);
	return begun != ended;
}
#else
static bool can_count_readers(struct srcu_struct *srcu)
{
	return false;
}

static bool has_readers(struct srcu_struct *srcu)
{
	return true;
}
#endif

/* A vCPU that has left the guest for a short while is back within some microseconds. */
#define GLANCES 4
#define BETWEEN_GLANCES_US 3

/* Is there a moment without any reader?  Sleeps @naps times before it gives up. */
static bool has_moment_without_readers(struct kvm *kvm, int naps)
{
	int i;

	if (!can_count_readers(&kvm->srcu))
		return false;
	for (i = 0; i < GLANCES + naps; i++) {
		if (i >= GLANCES)
			usleep_range(20, 100);
		else if (i)
			udelay(BETWEEN_GLANCES_US);
		if (!has_readers(&kvm->srcu))
			return true;
	}
	return false;
}

/* ---- Before anything is visible ---- */

/* The vCPUs stand still, and a grace period would keep them so for longer than vain naps. */
#define NAPS_BEFORE 8

/* A grace period; the thread that has asked for it may no longer wait for its end */
struct leave {
	struct rcu_head rcu;
	struct kref refs; /* of the waiting thread, and of SRCU */
	struct completion ended;
	struct file *file; /* keeps the VM, and with it the srcu_struct, and this module */
};

static void leave_release(struct kref *refs)
{
	kfree(container_of(refs, struct leave, refs));
}

static void leave_ended(struct rcu_head *rcu)
{
	struct leave *leave = container_of(rcu, struct leave, rcu);
	struct file *file = leave->file;

	complete(&leave->ended);
	kref_put(&leave->refs, leave_release);
	/*
	 * From a kernel thread fput() leaves the release to a work of its own.  So the
	 * module may be unloaded while this thread has yet to return from here, and
	 * unloading waits until no task is in its code, see park_drain().
	 */
	fput(file);
}

static int wait_for_grace_period(struct kvm *kvm, struct file *file, unsigned long deadline,
				 u32 *reason)
{
	struct leave *leave;
	long left;

	leave = kmalloc(sizeof(*leave), GFP_KERNEL_ACCOUNT);
	if (!leave) {
		*reason = MEMSLOT_REASON_MEMORY;
		return -ENOMEM;
	}
	kref_init(&leave->refs);
	kref_get(&leave->refs);
	init_completion(&leave->ended);
	leave->file = get_file(file);
	call_srcu(&kvm->srcu, &leave->rcu, leave_ended);

	left = max(1L, (long)(deadline - jiffies));
	left = wait_for_completion_killable_timeout(&leave->ended, left);
	kref_put(&leave->refs, leave_release);
	if (left > 0)
		return 0;
	if (left < 0)
		return -EINTR;
	*reason = MEMSLOT_REASON_LOCKED;
	return -EBUSY;
}

/**
 * readers_leave - wait for the readers of a VM whose vCPUs are parked
 * @kvm: the VM
 * @file: the open file of /dev/memslot that holds the VM
 * @deadline: in jiffies, when to give up
 * @reason: out, on error: enum memslot_reason
 *
 * Readers that are no vCPUs may sleep, too: KVM's Xen ioctls do, for a page of user
 * memory.  After publishing, a commit would have to wait for that with the vCPUs
 * parked; before, it can give up.  Most of the time there is no reader, which counting
 * tells; a grace period is awaited only if there was one at each look.
 *
 * Return: 0, -EBUSY, -EINTR, or -ENOMEM.
 */
int readers_leave(struct kvm *kvm, struct file *file, unsigned long deadline, u32 *reason)
{
	if (has_moment_without_readers(kvm, NAPS_BEFORE))
		return 0;
	return wait_for_grace_period(kvm, file, deadline, reason);
}

/* ---- After publishing ---- */

/* Page faults in the fence's range are tried again meanwhile, so not many. */
#define NAPS_AFTER 2

/**
 * readers_wait - wait until nobody has a slot of the old layout any more
 * @kvm: the VM
 * @parked: its vCPUs are; the caller has their mutexes
 */
void readers_wait(struct kvm *kvm, bool parked)
{
	struct prefault_watch watch = { .kvm = kvm };
	bool watched = COMPAT_PRE_FAULT_MEMORY && !parked;

	might_sleep();
	if (has_moment_without_readers(kvm, NAPS_AFTER))
		return;
	if (watched) {
		INIT_DELAYED_WORK_ONSTACK(&watch.work, look_for_prefault);
		schedule_delayed_work(&watch.work, msecs_to_jiffies(LOOK_MS));
	}
	synchronize_srcu_expedited(&kvm->srcu);
	if (watched) {
		cancel_delayed_work_sync(&watch.work);
		destroy_delayed_work_on_stack(&watch.work);
		while (watch.nr_seen)
			put_task_struct(watch.seen[--watch.nr_seen].holder);
	}
}
