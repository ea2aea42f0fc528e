// SPDX-License-Identifier: GPL-2.0
/*
 * All vCPUs out of KVM_RUN, and kept out, by holding every vcpu->mutex.
 *
 * A mutex that is free is taken.  The owner of one that is not gets a task
 * work: that makes KVM_RUN return EINTR, and on the thread's way to userspace
 * the work holds it there.  Without that it would be back in KVM_RUN before
 * the parking thread has seen the mutex free.
 *
 * Lock order: kvm->lock, vcpu->mutex (only ever tried: KVM's Xen ioctls take
 * kvm->lock inside it), slots_lock.
 */
#include "park.h"

#include <linux/jiffies.h>
#include <linux/kref.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/task_work.h>
#include <linux/wait.h>
#include <linux/memslot.h>

#include "compat/compat.h"

/* A lost wakeup costs this much; there is none that we know of */
#define PARK_POLL_MS 10

/*
 * A thread that the work holds back may go after this long.  It cannot get
 * into KVM_RUN while the mutex is held; well below the freezer's 20 seconds.
 */
#define PARK_HOLD_MS (2 * PARK_TIMEOUT_MS)

enum notice_state {
	NOTICE_QUEUED, /* not run yet */
	NOTICE_BOUNCED, /* ran inside KVM_RUN, or in a dying thread */
	NOTICE_HOLDING, /* the thread waits on its way to userspace */
};

/* One task work that was sent to a thread that ran a vCPU */
struct notice {
	struct callback_head work;
	struct kref refs; /* of the parking thread, and of the queue it is in */
	struct park *park;
	struct task_struct *task;
	struct notice *previous; /* of the same vCPU; a list to free */
	enum notice_state state; /* under park->lock */
};

struct park {
	struct kref refs; /* of the parking thread, and of each notice */
	struct kvm *kvm;
	unsigned long deadline; /* jiffies */
	spinlock_t lock; /* protects over, changes and notice.state */
	bool over; /* nobody is to be held back any more */
	unsigned int changes; /* counts what notices report */
	wait_queue_head_t change; /* the parking thread waits here */
	wait_queue_head_t release; /* the threads wait here */
	int nr_vcpus;
	struct {
		struct kvm_vcpu *vcpu;
		struct notice *notice; /* the newest */
		bool held;
	} vcpu[];
};

/* Notices that may still execute code of this module */
static atomic_t notices_alive = ATOMIC_INIT(0);
static DECLARE_WAIT_QUEUE_HEAD(notices_gone);

static void park_release(struct kref *refs)
{
	kvfree(container_of(refs, struct park, refs));
}

static void notice_release(struct kref *refs)
{
	struct notice *notice = container_of(refs, struct notice, refs);

	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): the analyzer does not count references */
	kref_put(&notice->park->refs, park_release);
	put_task_struct(notice->task);
	kfree(notice);
}

/* The last thing that a queued notice does, whether it ran or was cancelled. */
static void notice_done(struct notice *notice)
{
	kref_put(&notice->refs, notice_release);
	if (atomic_dec_and_test(&notices_alive))
		wake_up_all(&notices_gone);
}

/* Runs in the thread that was found inside a vCPU's ioctl. */
static void notice_run(struct callback_head *work)
{
	struct notice *notice = container_of(work, struct notice, work);
	struct park *park = notice->park;
	bool hold = false;

	spin_lock(&park->lock);
	if (!park->over) {
		/*
		 * Task work also runs on the way into the guest, with the very
		 * mutex held that the parking thread waits for, or that of
		 * another vCPU of this thread: never wait there.  KVM_RUN is
		 * about to return, for TIF_NOTIFY_SIGNAL is set after the work
		 * was queued.
		 */
		hold = !(current->flags & PF_EXITING) && !internal(kvm_get_running_vcpu)();
		notice->state = hold ? NOTICE_HOLDING : NOTICE_BOUNCED;
		park->changes++;
		wake_up(&park->change);
	}
	spin_unlock(&park->lock);

	if (hold)
		wait_event_killable_timeout(park->release, READ_ONCE(park->over),
					    msecs_to_jiffies(PARK_HOLD_MS));
	notice_done(notice);
}

/* Has the newest notice of a vCPU still to do its work on @task? */
static bool notice_under_way(struct park *park, int i, struct task_struct *task)
{
	struct notice *notice = park->vcpu[i].notice;
	bool under_way;

	if (!notice || notice->task != task)
		return false;
	spin_lock(&park->lock);
	under_way = notice->state == NOTICE_QUEUED;
	spin_unlock(&park->lock);
	return under_way;
}

/*
 * Tell @task, which is inside an ioctl of the vCPU, to leave it.  Takes over
 * the reference to it.
 */
static int notify(struct park *park, int i, struct task_struct *task)
{
	struct notice *notice;

	if (notice_under_way(park, i, task)) {
		put_task_struct(task);
		return 0;
	}

	notice = kzalloc(sizeof(*notice), GFP_KERNEL_ACCOUNT);
	if (!notice) {
		put_task_struct(task);
		return -ENOMEM;
	}
	init_task_work(&notice->work, notice_run);
	kref_init(&notice->refs);
	kref_get(&notice->refs);
	kref_get(&park->refs);
	notice->park = park;
	notice->task = task;
	notice->previous = park->vcpu[i].notice;
	park->vcpu[i].notice = notice;

	atomic_inc(&notices_alive);
	if (internal(task_work_add)(task, &notice->work, TWA_SIGNAL)) {
		/* The thread is past its last task work: it is leaving. */
		notice->state = NOTICE_BOUNCED;
		notice_done(notice);
	}
	return 0;
}

static bool is_notice(struct callback_head *work, void *data)
{
	return work == data;
}

/* Take back what did not run, and free all notices of a vCPU. */
static void withdraw_notices(struct park *park, int i)
{
	struct notice *notice, *previous;

	for (notice = park->vcpu[i].notice; notice; notice = previous) {
		previous = notice->previous;
		if (internal(task_work_cancel_match)(notice->task, is_notice, &notice->work))
			notice_done(notice);
		kref_put(&notice->refs, notice_release);
	}
	park->vcpu[i].notice = NULL;
}

/* Take a vCPU's mutex, or return who has it, with a reference. */
static struct task_struct *try_vcpu(struct park *park, int i)
{
	struct mutex *lock = &park->vcpu[i].vcpu->mutex;
	struct task_struct *owner = NULL;

	do {
		if (mutex_trylock(lock)) {
			compat_mutex_nest(lock, &park->kvm->lock);
			park->vcpu[i].held = true;
			return NULL;
		}
		owner = compat_mutex_owner(lock);
	} while (!owner); /* released in between */
	return owner;
}

/*
 * One pass over the vCPUs that are not held yet: take what is free, tell the
 * others to leave.  Nothing waits in here, so all kicks are out before the
 * first wait.
 *
 * Returns the number of vCPUs still missing, or -ENOMEM.
 */
static int try_all(struct park *park)
{
	struct task_struct *owner;
	int missing = 0;
	int i, err;

	for (i = 0; i < park->nr_vcpus; i++) {
		if (park->vcpu[i].held)
			continue;
		owner = try_vcpu(park, i);
		if (!owner)
			continue;
		err = notify(park, i, owner);
		if (err)
			return err;
		missing++;
	}
	return missing;
}

static int wait_for_all(struct park *park, u32 *reason)
{
	for (;;) {
		unsigned int seen = READ_ONCE(park->changes);
		int missing = try_all(park);

		if (missing <= 0)
			return missing;
		if (time_after(jiffies, park->deadline)) {
			*reason = MEMSLOT_REASON_PARK_TIMEOUT;
			return -EBUSY;
		}
		if (wait_event_killable_timeout(park->change,
						READ_ONCE(park->changes) != seen,
						msecs_to_jiffies(PARK_POLL_MS)) < 0)
			return -EINTR;
	}
}

static struct park *park_alloc(struct kvm *kvm)
{
	int i, n = atomic_read(&kvm->online_vcpus);
	struct park *park;

	park = kvzalloc(struct_size(park, vcpu, n), GFP_KERNEL_ACCOUNT);
	if (!park)
		return NULL;
	kref_init(&park->refs);
	park->kvm = kvm;
	park->deadline = jiffies + msecs_to_jiffies(PARK_TIMEOUT_MS);
	spin_lock_init(&park->lock);
	init_waitqueue_head(&park->change);
	init_waitqueue_head(&park->release);
	park->nr_vcpus = n;
	for (i = 0; i < n; i++)
		park->vcpu[i].vcpu = kvm_get_vcpu(kvm, i);
	return park;
}

/**
 * park_begin - get all vCPUs out of KVM_RUN and keep them out
 * @kvm: the VM
 * @reason: out, on error: enum memslot_reason
 *
 * No vCPU is created or runs, and no vCPU ioctl is in progress, until
 * park_end().
 *
 * Return: what to give to park_end(), or ERR_PTR: -EBUSY if a vCPU did not
 * leave in time, -EINTR on a fatal signal, -ENOMEM.  On error everybody runs.
 */
struct park *park_begin(struct kvm *kvm, u32 *reason)
{
	struct park *park;
	int err;

	/* Keeps the set of vCPUs stable. */
	if (mutex_lock_killable(&kvm->lock))
		return ERR_PTR(-EINTR);

	park = park_alloc(kvm);
	if (!park) {
		mutex_unlock(&kvm->lock);
		*reason = MEMSLOT_REASON_MEMORY;
		return ERR_PTR(-ENOMEM);
	}

	err = wait_for_all(park, reason);
	if (err) {
		if (err == -ENOMEM)
			*reason = MEMSLOT_REASON_MEMORY;
		park_end(park);
		return ERR_PTR(err);
	}
	return park;
}

/**
 * park_lock_slots - take slots_lock, within the time that a park may last
 * @park: what park_begin() returned
 * @reason: out, on error: enum memslot_reason
 *
 * Its holder may sleep for long: in a page fault that userfaultfd serves, or in
 * a commit that waits for a reader who does.  vCPUs must not stand still for
 * that.
 *
 * Return: 0, -EBUSY or -EINTR.
 */
int park_lock_slots(struct park *park, u32 *reason)
{
	while (!mutex_trylock(&park->kvm->slots_lock)) {
		if (time_after(jiffies, park->deadline)) {
			*reason = MEMSLOT_REASON_LOCKED;
			return -EBUSY;
		}
		if (fatal_signal_pending(current))
			return -EINTR;
		schedule_timeout_killable(1);
	}
	return 0;
}

/**
 * park_end - let all vCPUs run
 * @park: what park_begin() returned
 */
void park_end(struct park *park)
{
	int i;

	for (i = 0; i < park->nr_vcpus; i++)
		if (park->vcpu[i].held)
			mutex_unlock(&park->vcpu[i].vcpu->mutex);

	spin_lock(&park->lock);
	WRITE_ONCE(park->over, true);
	spin_unlock(&park->lock);
	wake_up_all(&park->release);
	mutex_unlock(&park->kvm->lock);

	for (i = 0; i < park->nr_vcpus; i++)
		withdraw_notices(park, i);
	kref_put(&park->refs, park_release);
}

/**
 * park_drain - wait until no thread executes a notice
 *
 * For module unload, when no file is open and so no new notice can come.  One
 * that is on its way out of this module's code has only to reach a context
 * switch, which is what an RCU-tasks grace period waits for.
 */
void park_drain(void)
{
	wait_event(notices_gone, !atomic_read(&notices_alive));
	synchronize_rcu_tasks();
}
