/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Does every commit end?  Only who waits for whom: locks, grace periods, the
 * delayed work of readers.c, the task works of park.c.  Each process that can go on does so
 * some time (weak fairness), and vCPU threads call their ioctls again for ever.
 *
 *	PREFAULT	vCPU 0's thread also calls KVM_PRE_FAULT_MEMORY (Linux 6.11 and later)
 *	TOMBSTONES	the commit publishes twice
 *	PARK		the commit parks
 *	SLEEPS		the commit parks, but somebody sleeps for ever: in a page fault, or
 *			with a lock; or a Xen ioctl wants kvm->lock.  Then time runs out.
 */
#ifdef SLEEPS
#define PARK
#endif
#include "kvm.pml"

#define VCPUS 2

bool kvm_lock;
bool vcpu_mutex[VCPUS];
bool signalled[VCPUS];		/* TIF_NOTIFY_SIGNAL of the vCPU's thread */
bool held[VCPUS];		/* the parking thread has the mutex */
bool prefaulting[VCPUS];	/* in KVM_PRE_FAULT_MEMORY */
bool shadow_root_allocated;
bool fenced, tombstone;		/* a fault in range, on the gfn, is to be retried */
bit mmu_valid_gen;		/* roots of another generation are obsolete */
bool waiting;			/* for a grace period, so prefault_watch looks */
bool late;			/* PARK_TIMEOUT_MS are over */
bool parked, over;
bool returned;

#if defined(PARK) && !defined(SLEEPS)
ltl parking_succeeds { <> parked }
#else
ltl every_commit_ends { <> returned }
#endif

/* ---- The commit ---- */

/* Within the time that parking may take. */
#define mutex_lock_bounded(lock) \
	if \
	:: atomic { !lock -> lock = true } \
	:: late && lock -> goto busy \
	fi

/* try_all(): take what is free, notify the owners of the others */
inline try_vcpu(v)
{
#ifdef PARK_WAITS_FOR_MUTEX
	if
	:: !held[v] -> mutex_lock(vcpu_mutex[v]); held[v] = true
	:: else
	fi
#else
	atomic {
		if
		:: held[v]
		:: !held[v] && !vcpu_mutex[v] ->
			vcpu_mutex[v] = true;
			held[v] = true
		:: else -> signalled[v] = true
		fi
	}
#endif
}

inline park()
{
#ifdef KVM_LOCK_UNBOUNDED
	mutex_lock(kvm_lock);
#else
	mutex_lock_bounded(kvm_lock);
#endif
	do
	:: held[0] && held[1] -> break
	:: else ->
#ifndef PARKING_WITHOUT_LIMIT
		if
		:: late -> goto unpark
		:: else
		fi;
#endif
		try_vcpu(0);
		try_vcpu(1)
	od
}

inline readers_wait()
{
#ifndef PREFAULT_NOT_INTERRUPTED
	waiting = true;
#endif
	synchronize_srcu();
	waiting = false
}

proctype commit()
{
#ifdef PARK
	park();
#ifdef SLOTS_LOCK_UNBOUNDED
	mutex_lock(slots_lock);
#else
	if
	:: atomic { !slots_lock -> slots_lock = true }
	:: late && slots_lock -> goto unpark
	fi;
#endif
	parked = true;
#else
	mutex_lock(slots_lock);
#endif
	mutex_lock(slots_arch_lock);
	fenced = true;
#ifndef ARCH_LOCK_ACROSS_WAIT
	mutex_unlock(slots_arch_lock);			/* published */
#endif
#ifdef TOMBSTONES
	tombstone = true;
#endif
	readers_wait();
#ifdef ARCH_LOCK_ACROSS_WAIT
	mutex_unlock(slots_arch_lock);
#endif
	fenced = false;
#ifdef TOMBSTONES
	if
	:: shadow_root_allocated -> mmu_valid_gen = 1 - mmu_valid_gen	/* kvm_mmu_zap_all_fast() */
	:: else
	fi;
	mutex_lock(slots_arch_lock);
	tombstone = false;
	mutex_unlock(slots_arch_lock);			/* published again */
#ifdef PREFAULT_INTERRUPTED_IN_FIRST_ONLY
	synchronize_srcu();
#else
	readers_wait();
#endif
#endif
	mutex_unlock(slots_lock);
#ifdef PARK
unpark:	over = true;
	if
	:: held[0] -> vcpu_mutex[0] = false
	:: else
	fi;
	if
	:: held[1] -> vcpu_mutex[1] = false
	:: else
	fi;
	mutex_unlock(kvm_lock);
busy:	skip;
#endif
	returned = true
}

/* Who holds a vCPU's mutex outside KVM_RUN gets a signal. */
#ifdef PREFAULT
proctype prefault_watch()
{
	do
	:: returned -> break
	:: atomic { waiting && prefaulting[0] && !signalled[0] -> signalled[0] = true }
	od
}
#endif

#ifdef SLEEPS
proctype clock()
{
	late = true
}
#endif

/* ---- The others ---- */

proctype kvm_ioctl()
{
#ifdef SLEEPS
	if
	:: mutex_lock(kvm_lock); false			/* 7.3: KVM_CREATE_VCPU */
	:: mutex_lock(slots_lock); false		/* KVM_GET_DIRTY_LOG to userfaultfd memory */
	:: skip
	fi;
#endif
	mutex_lock(slots_lock);
	mutex_lock(slots_arch_lock);
	mutex_unlock(slots_arch_lock);
	synchronize_srcu();
	mutex_unlock(slots_lock)
}

/* The task work holds the thread on its way to userspace while somebody parks. */
inline return_to_userspace(me)
{
	mutex_unlock(vcpu_mutex[me]);
#if defined(PARK) && !defined(THREADS_NOT_HELD_BACK)
	if
	:: signalled[me] -> over
	:: else
	fi;
#endif
	signalled[me] = false
}

inline kvm_run(me)
{
	mutex_lock(vcpu_mutex[me]);
	do
	:: signalled[me] ->
#ifdef TASK_WORK_WAITS_IN_KVM_RUN
		over;
#endif
		break					/* EINTR */
	:: !signalled[me] ->
		srcu_read_lock(me);
		if
		:: !shadow_root_allocated ->		/* mmu_first_shadow_root_alloc() */
			mutex_lock(slots_arch_lock);
			shadow_root_allocated = true;
			mutex_unlock(slots_arch_lock)
		:: skip					/* a page fault; retries leave the section */
#ifdef SLEEPS
		:: true -> false			/* one that sleeps in userfaultfd */
#endif
		fi;
		srcu_read_unlock(me)
	:: break					/* for a reason of its own */
	od;
	return_to_userspace(me)
}

#ifdef PREFAULT
/* kvm_vcpu_pre_fault_memory(): the root is looked at once, the fault retried in the section */
inline kvm_pre_fault_memory(me, root)
{
	mutex_lock(vcpu_mutex[me]);
	prefaulting[me] = true;
	srcu_read_lock(me);
	root = mmu_valid_gen;				/* kvm_mmu_reload() */
	do
	:: signalled[me] -> break			/* EINTR */
	:: else ->
		if
		:: fenced || tombstone || root != mmu_valid_gen	/* RET_PF_RETRY */
		:: else -> break
		fi
	od;
	srcu_read_unlock(me);
	prefaulting[me] = false;
	return_to_userspace(me)
}
#endif

#ifdef SLEEPS
/* kvm_xen_vcpu_set_attr(): the one who takes kvm->lock inside vcpu->mutex */
inline kvm_xen_ioctl(me)
{
	mutex_lock(vcpu_mutex[me]);
	mutex_lock(kvm_lock);
	mutex_unlock(kvm_lock);
	return_to_userspace(me)
}
#endif

proctype vcpu(byte me)
{
#ifdef PREFAULT
	bit root;
#endif

	do
	:: kvm_run(me)
#ifdef SLEEPS
	:: me == 0 -> kvm_xen_ioctl(me)
#endif
#ifdef PREFAULT
	:: me == 0 -> kvm_pre_fault_memory(me, root)
#endif
	od
}

init {
	atomic {
#ifdef PREFAULT
		run prefault_watch();
#endif
#ifdef SLEEPS
		run clock();
#endif
		run vcpu(0);
		run vcpu(1);
		run kvm_ioctl();
		run commit()
	}
}
