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

#include "deadline.h"
#include "kvm_internals.h"
#include "mutex.h"

/* The parking thread looks again after this long, even if nothing has woken it. */
#define PARK_POLL_MS 10

/*
 * A thread that a task work holds back goes on after this long at the latest, so that
 * the freezer, which waits for 20 seconds, never fails because of it.  It still cannot
 * get into KVM_RUN, for the parking thread has the mutex.
 */
#define PARK_HOLD_MS (2 * DEADLINE_MS)

enum park_work_state {
	WORK_QUEUED, /* not run yet */
	WORK_BOUNCED, /* ran inside KVM_RUN, or in a dying thread */
	WORK_HOLDING, /* the thread waits on its way to userspace */
};

/* One task work that was queued for a thread which had a vCPU's mutex */
struct park_work {
	struct callback_head head;
	struct kref refs; /* of the parking thread, and of the queue it is in */
	struct park *park;
	struct task_struct *task;
	struct park_work *previous; /* of the same vCPU; a list to free */
	enum park_work_state state; /* under park->lock */
};

struct park {
	struct kref refs; /* of the parking thread, and of each work */
	struct kvm *kvm;
	unsigned long deadline; /* jiffies */
	spinlock_t lock; /* protects over, nr_reports and the state of each work */
	bool over; /* nobody is to be held back any more; looked at without the lock */
	unsigned int nr_reports; /* of works that have run; looked at without the lock */
	wait_queue_head_t reported; /* the parking thread waits here */
	wait_queue_head_t release; /* the threads wait here */
	int nr_vcpus;
	struct {
		struct kvm_vcpu *vcpu;
		struct park_work *work; /* the newest */
		bool held;
	} vcpu[];
};

/* Task works that may still execute code of this module */
static atomic_t works_alive = ATOMIC_INIT(0);
static DECLARE_WAIT_QUEUE_HEAD(works_gone);

static void park_release(struct kref *refs)
{
	kvfree(container_of(refs, struct park, refs));
}

static void park_work_release(struct kref *refs)
{
	struct park_work *work = container_of(refs, struct park_work, refs);

	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): the analyzer does not count references */
	kref_put(&work->park->refs, park_release);
	put_task_struct(work->task);
	kfree(work);
}

/* The last thing that is done for a queued work, whether it ran or was cancelled. */
static void park_work_done(struct park_work *work)
{
	kref_put(&work->refs, park_work_release);
	if (atomic_dec_and_test(&works_alive))
		wake_up_all(&works_gone);
}

/* Runs in the thread that was found inside a vCPU's ioctl. */
static void park_work_run(struct callback_head *head)
{
	struct park_work *work = container_of(head, struct park_work, head);
	struct park *park = work->park;
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
		work->state = hold ? WORK_HOLDING : WORK_BOUNCED;
		WRITE_ONCE(park->nr_reports, park->nr_reports + 1);
		wake_up(&park->reported);
	}
	spin_unlock(&park->lock);

	if (hold)
		wait_event_killable_timeout(park->release, READ_ONCE(park->over),
					    msecs_to_jiffies(PARK_HOLD_MS));
	park_work_done(work);
}

/* Is the newest work that was queued for a vCPU one for @task, and has it not run yet? */
static bool work_is_under_way(struct park *park, int i, struct task_struct *task)
{
	struct park_work *work = park->vcpu[i].work;
	bool under_way;

	if (!work || work->task != task)
		return false;
	spin_lock(&park->lock);
	under_way = work->state == WORK_QUEUED;
	spin_unlock(&park->lock);
	return under_way;
}

/*
 * Tell @task, which is inside an ioctl of the vCPU, to leave it.  Takes over
 * the reference to it.
 *
 * A task that is not in KVM_RUN, but copies user memory which waits for userfaultfd,
 * cannot leave.  It spins until the page comes, see interrupt() in readers.c.
 */
static int notify(struct park *park, int i, struct task_struct *task)
{
	struct park_work *work;

	if (work_is_under_way(park, i, task)) {
		put_task_struct(task);
		return 0;
	}

	work = kzalloc(sizeof(*work), GFP_KERNEL_ACCOUNT);
	if (!work) {
		put_task_struct(task);
		return -ENOMEM;
	}
	init_task_work(&work->head, park_work_run);
	kref_init(&work->refs);
	kref_get(&work->refs);
	kref_get(&park->refs);
	work->park = park;
	work->task = task;
	work->previous = park->vcpu[i].work;
	park->vcpu[i].work = work;

	atomic_inc(&works_alive);
	if (internal(task_work_add)(task, &work->head, TWA_SIGNAL)) {
		/* The thread is past its last task work: it is leaving. */
		work->state = WORK_BOUNCED;
		park_work_done(work);
	}
	return 0;
}

static bool is_work(struct callback_head *head, void *data)
{
	return head == data;
}

/* Take back the works of a vCPU that have not run, and free all of them. */
static void withdraw_works(struct park *park, int i)
{
	struct park_work *work, *previous;

	for (work = park->vcpu[i].work; work; work = previous) {
		previous = work->previous;
		if (internal(task_work_cancel_match)(work->task, is_work, &work->head))
			park_work_done(work);
		kref_put(&work->refs, park_work_release);
	}
	park->vcpu[i].work = NULL;
}

/* Take a vCPU's mutex, or return the thread that has it, with a reference. */
static struct task_struct *try_vcpu(struct park *park, int i)
{
	struct mutex *lock = &park->vcpu[i].vcpu->mutex;
	struct task_struct *owner = NULL;

	do {
		if (mutex_trylock(lock)) {
			mutex_nest(lock, &park->kvm->lock);
			park->vcpu[i].held = true;
			return NULL;
		}
		owner = mutex_holder(lock);
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
		unsigned int seen = READ_ONCE(park->nr_reports);
		int missing = try_all(park);

		if (missing <= 0)
			return missing;
		if (time_after(jiffies, park->deadline)) {
			*reason = MEMSLOT_REASON_PARK_TIMEOUT;
			return -EBUSY;
		}
		if (wait_event_killable_timeout(park->reported,
						READ_ONCE(park->nr_reports) != seen,
						msecs_to_jiffies(PARK_POLL_MS)) < 0)
			return -EINTR;
	}
}

static struct park *park_alloc(struct kvm *kvm, unsigned long deadline)
{
	int i, n = atomic_read(&kvm->online_vcpus);
	struct park *park;

	park = kvzalloc(struct_size(park, vcpu, n), GFP_KERNEL_ACCOUNT);
	if (!park)
		return NULL;
	kref_init(&park->refs);
	park->kvm = kvm;
	park->deadline = deadline;
	spin_lock_init(&park->lock);
	init_waitqueue_head(&park->reported);
	init_waitqueue_head(&park->release);
	park->nr_vcpus = n;
	for (i = 0; i < n; i++)
		park->vcpu[i].vcpu = kvm_get_vcpu(kvm, i);
	return park;
}

/**
 * park_begin - get all vCPUs out of KVM_RUN and keep them out
 * @kvm: the VM
 * @deadline: in jiffies, when to give up
 * @reason: out, on error: enum memslot_reason
 *
 * No vCPU is created or runs, and no vCPU ioctl is in progress, until
 * park_end().
 *
 * Return: what to give to park_end(), or ERR_PTR: -EBUSY if kvm->lock was held
 * or a vCPU did not leave in time, -EINTR on a fatal signal, -ENOMEM.  On error
 * everybody runs.
 */
struct park *park_begin(struct kvm *kvm, unsigned long deadline, u32 *reason)
{
	struct park *park;
	int err;

	/*
	 * Keeps the set of vCPUs stable.  Its holder may sleep for long: some of
	 * KVM's ioctls read user memory with it, and create vCPUs.
	 */
	err = deadline_lock(&kvm->lock, deadline, reason);
	if (err)
		return ERR_PTR(err);

	park = park_alloc(kvm, deadline);
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
		withdraw_works(park, i);
	kref_put(&park->refs, park_release);
}

/**
 * park_drain - wait until no thread executes a task work of this module
 *
 * For module unload, when no file is open, so that nobody queues a new one.  A thread
 * that is about to return from this module's code has to reach a context switch, and
 * an RCU-tasks grace period waits for just that.
 */
void park_drain(void)
{
	wait_event(works_gone, !atomic_read(&works_alive));
	synchronize_rcu_tasks();
}
