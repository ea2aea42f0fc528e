// SPDX-License-Identifier: GPL-2.0
/*
 * The functions that the VMM finds in place of the C library's.  Each does what session.hpp says
 * for the moment and calls the next one.
 *
 * Those that can be cancellation points are not noexcept: pthread_cancel() unwinds the stack of a
 * thread that waits in the C library, through the function here, and noexcept would end the
 * process.
 */
#include "next.hpp"
#include "session.hpp"

#include <algorithm>

#include <cerrno>
#include <csignal>
#include <climits>
#include <cstdarg>
#include <fcntl.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace memslot_run;

namespace {

/** Calls something that blocks, or that tells somebody outside. */
template <symbol Name, typename Function, typename... Args>
auto blocking(Function *ours, Args... args)
{
	leaves(moment::block);
	return next<Name>(ours, args...);
}

/** Calls something that wakes a thread of the VMM. */
template <symbol Name, typename Function, typename... Args>
auto waking(Function *ours, Args... args)
{
	wakes();
	return next<Name>(ours, args...);
}

/** Notes that a mutex was taken, if it was. */
int taken(int err, pthread_mutex_t *mutex)
{
	/* What PTHREAD_MUTEX_INITIALIZER and its like put there is glibc's ABI */
	const bool recursive = (mutex->__data.__kind & 3) == PTHREAD_MUTEX_RECURSIVE;

	if (err == 0 || err == EOWNERDEAD)
		self.held.took(mutex, recursive);
	return err;
}

/** Notes that a lock was taken, if it was; readers can take it more than once. */
int taken(int err, pthread_rwlock_t *lock)
{
	if (err == 0)
		self.held.took(lock, true);
	return err;
}

template <typename Lock>
int released(int err, Lock *lock)
{
	if (err == 0)
		self.held.released(lock);
	return err;
}

/** Forgets a lock that was destroyed or initialised: in either case no thread holds it. */
template <typename Lock>
int destroyed(int err, Lock *lock)
{
	if (err == 0)
		self.held.forget(lock);
	return err;
}

int close_all(unsigned first, unsigned last, int flags)
{
	if (flags & static_cast<int>(CLOSE_RANGE_CLOEXEC))
		return next<"close_range">(close_range, first, last, flags);

	const auto in_range = [last](int fd) {
		return fd >= 0 && static_cast<unsigned>(fd) <= last;
	};
	const auto from = static_cast<int>(std::min<unsigned>(first, INT_MAX));

	for (int fd = next_vm(from); in_range(fd); fd = next_vm(fd + 1))
		closes(fd);

	/* What is left of the range, before and after our descriptors */
	int err = 0;

	for (int own = next_own(from); in_range(own); own = next_own(own + 1)) {
		const auto before = static_cast<unsigned>(own);

		if (first < before)
			err |= next<"close_range">(close_range, first, before - 1, flags);
		first = before + 1;
	}
	if (first <= last)
		err |= next<"close_range">(close_range, first, last, flags);
	return err;
}

} // namespace

#pragma GCC visibility push(default)

extern "C" {

/* The checked variants that _FORTIFY_SOURCE calls; no header declares them */
ssize_t __read_chk(int fd, void *buffer, size_t size, size_t space);
ssize_t __pread_chk(int fd, void *buffer, size_t size, off_t offset, size_t space);
ssize_t __pread64_chk(int fd, void *buffer, size_t size, off64_t offset, size_t space);
ssize_t __recv_chk(int fd, void *buffer, size_t size, size_t space, int flags);
ssize_t __recvfrom_chk(int fd, void *buffer, size_t size, size_t space, int flags,
		       sockaddr *address, socklen_t *length);
int __poll_chk(pollfd *fds, nfds_t count, int timeout, size_t space);
int __ppoll_chk(pollfd *fds, nfds_t count, const timespec *timeout, const sigset_t *mask,
		size_t space);

/* Memory calls, and everything else that KVM is asked for */

int ioctl(int fd, unsigned long request, ...) noexcept
{
	va_list args;

	va_start(args, request);
	void *argument = va_arg(args, void *);
	va_end(args);
	return kvm_ioctl(fd, request, argument);
}

/* Locks */

/* A mutex that is initialised is held by no thread; fork handlers may do that in a child instead of
 * unlocking
 */

int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes) noexcept
{
	return destroyed(next<"pthread_mutex_init">(pthread_mutex_init, mutex, attributes), mutex);
}

int pthread_rwlock_init(pthread_rwlock_t *lock, const pthread_rwlockattr_t *attributes) noexcept
{
	return destroyed(next<"pthread_rwlock_init">(pthread_rwlock_init, lock, attributes), lock);
}

int pthread_mutex_lock(pthread_mutex_t *mutex) noexcept
{
	return taken(next<"pthread_mutex_lock">(pthread_mutex_lock, mutex), mutex);
}

int pthread_mutex_trylock(pthread_mutex_t *mutex) noexcept
{
	return taken(next<"pthread_mutex_trylock">(pthread_mutex_trylock, mutex), mutex);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const timespec *until) noexcept
{
	return taken(next<"pthread_mutex_timedlock">(pthread_mutex_timedlock, mutex, until), mutex);
}

int pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const timespec *until) noexcept
{
	return taken(next<"pthread_mutex_clocklock">(pthread_mutex_clocklock, mutex, clock, until),
		     mutex);
}

int pthread_mutex_unlock(pthread_mutex_t *mutex) noexcept
{
	releases(mutex);
	return released(next<"pthread_mutex_unlock">(pthread_mutex_unlock, mutex), mutex);
}

int pthread_mutex_destroy(pthread_mutex_t *mutex) noexcept
{
	return destroyed(next<"pthread_mutex_destroy">(pthread_mutex_destroy, mutex), mutex);
}

int pthread_rwlock_rdlock(pthread_rwlock_t *lock) noexcept
{
	return taken(next<"pthread_rwlock_rdlock">(pthread_rwlock_rdlock, lock), lock);
}

int pthread_rwlock_tryrdlock(pthread_rwlock_t *lock) noexcept
{
	return taken(next<"pthread_rwlock_tryrdlock">(pthread_rwlock_tryrdlock, lock), lock);
}

int pthread_rwlock_timedrdlock(pthread_rwlock_t *lock, const timespec *until) noexcept
{
	return taken(next<"pthread_rwlock_timedrdlock">(pthread_rwlock_timedrdlock, lock, until),
		     lock);
}

int pthread_rwlock_clockrdlock(pthread_rwlock_t *lock, clockid_t clock,
			       const timespec *until) noexcept
{
	return taken(
		next<"pthread_rwlock_clockrdlock">(pthread_rwlock_clockrdlock, lock, clock, until),
		lock);
}

int pthread_rwlock_clockwrlock(pthread_rwlock_t *lock, clockid_t clock,
			       const timespec *until) noexcept
{
	return taken(
		next<"pthread_rwlock_clockwrlock">(pthread_rwlock_clockwrlock, lock, clock, until),
		lock);
}

int pthread_rwlock_wrlock(pthread_rwlock_t *lock) noexcept
{
	return taken(next<"pthread_rwlock_wrlock">(pthread_rwlock_wrlock, lock), lock);
}

int pthread_rwlock_trywrlock(pthread_rwlock_t *lock) noexcept
{
	return taken(next<"pthread_rwlock_trywrlock">(pthread_rwlock_trywrlock, lock), lock);
}

int pthread_rwlock_timedwrlock(pthread_rwlock_t *lock, const timespec *until) noexcept
{
	return taken(next<"pthread_rwlock_timedwrlock">(pthread_rwlock_timedwrlock, lock, until),
		     lock);
}

int pthread_rwlock_unlock(pthread_rwlock_t *lock) noexcept
{
	releases(lock);
	return released(next<"pthread_rwlock_unlock">(pthread_rwlock_unlock, lock), lock);
}

int pthread_rwlock_destroy(pthread_rwlock_t *lock) noexcept
{
	return destroyed(next<"pthread_rwlock_destroy">(pthread_rwlock_destroy, lock), lock);
}

/* Waking others */

int pthread_cond_signal(pthread_cond_t *condition) noexcept
{
	return waking<"pthread_cond_signal">(pthread_cond_signal, condition);
}

int pthread_cond_broadcast(pthread_cond_t *condition) noexcept
{
	return waking<"pthread_cond_broadcast">(pthread_cond_broadcast, condition);
}

int pthread_kill(pthread_t thread, int signal) noexcept
{
	return waking<"pthread_kill">(pthread_kill, thread, signal);
}

int kill(pid_t pid, int signal) noexcept
{
	return waking<"kill">(kill, pid, signal);
}

int tgkill(pid_t group, pid_t thread, int signal)
{
	return waking<"tgkill">(tgkill, group, thread, signal);
}

int sem_post(sem_t *semaphore) noexcept
{
	return blocking<"sem_post">(sem_post, semaphore);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
		   void *argument) noexcept
{
	return blocking<"pthread_create">(pthread_create, thread, attributes, start, argument);
}

/* Waiting for others */

int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
{
	return blocking<"pthread_cond_wait">(pthread_cond_wait, condition, mutex);
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const timespec *until)
{
	return blocking<"pthread_cond_timedwait">(pthread_cond_timedwait, condition, mutex, until);
}

int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock,
			   const timespec *until)
{
	return blocking<"pthread_cond_clockwait">(pthread_cond_clockwait, condition, mutex, clock,
						  until);
}

int pthread_barrier_wait(pthread_barrier_t *barrier) noexcept
{
	return blocking<"pthread_barrier_wait">(pthread_barrier_wait, barrier);
}

int pthread_join(pthread_t thread, void **result)
{
	return blocking<"pthread_join">(pthread_join, thread, result);
}

int pthread_timedjoin_np(pthread_t thread, void **result, const timespec *until)
{
	return blocking<"pthread_timedjoin_np">(pthread_timedjoin_np, thread, result, until);
}

int sem_wait(sem_t *semaphore)
{
	return blocking<"sem_wait">(sem_wait, semaphore);
}

int sem_timedwait(sem_t *semaphore, const timespec *until)
{
	return blocking<"sem_timedwait">(sem_timedwait, semaphore, until);
}

int sem_clockwait(sem_t *semaphore, clockid_t clock, const timespec *until)
{
	return blocking<"sem_clockwait">(sem_clockwait, semaphore, clock, until);
}

pid_t wait(int *status)
{
	return blocking<"wait">(wait, status);
}

pid_t waitpid(pid_t pid, int *status, int options)
{
	return blocking<"waitpid">(waitpid, pid, status, options);
}

pid_t wait4(pid_t pid, int *status, int options, rusage *usage) noexcept
{
	return blocking<"wait4">(wait4, pid, status, options, usage);
}

int waitid(idtype_t type, id_t id, siginfo_t *info, int options)
{
	return blocking<"waitid">(waitid, type, id, info, options);
}

/* Sleeping */

int nanosleep(const timespec *time, timespec *left)
{
	return blocking<"nanosleep">(nanosleep, time, left);
}

int clock_nanosleep(clockid_t clock, int flags, const timespec *time, timespec *left)
{
	return blocking<"clock_nanosleep">(clock_nanosleep, clock, flags, time, left);
}

int usleep(useconds_t time)
{
	return blocking<"usleep">(usleep, time);
}

unsigned sleep(unsigned time)
{
	return blocking<"sleep">(sleep, time);
}

int pause()
{
	return blocking<"pause">(pause);
}

int sigsuspend(const sigset_t *mask)
{
	return blocking<"sigsuspend">(sigsuspend, mask);
}

int sigwait(const sigset_t *set, int *signal)
{
	return blocking<"sigwait">(sigwait, set, signal);
}

int sigwaitinfo(const sigset_t *set, siginfo_t *info)
{
	return blocking<"sigwaitinfo">(sigwaitinfo, set, info);
}

int sigtimedwait(const sigset_t *set, siginfo_t *info, const timespec *timeout)
{
	return blocking<"sigtimedwait">(sigtimedwait, set, info, timeout);
}

/* Polling */

int poll(pollfd *fds, nfds_t count, int timeout)
{
	return blocking<"poll">(poll, fds, count, timeout);
}

int __poll_chk(pollfd *fds, nfds_t count, int timeout, size_t space)
{
	return blocking<"__poll_chk">(__poll_chk, fds, count, timeout, space);
}

int ppoll(pollfd *fds, nfds_t count, const timespec *timeout, const sigset_t *mask)
{
	return blocking<"ppoll">(ppoll, fds, count, timeout, mask);
}

int __ppoll_chk(pollfd *fds, nfds_t count, const timespec *timeout, const sigset_t *mask,
		size_t space)
{
	return blocking<"__ppoll_chk">(__ppoll_chk, fds, count, timeout, mask, space);
}

int select(int end, fd_set *in, fd_set *out, fd_set *other, timeval *timeout)
{
	return blocking<"select">(select, end, in, out, other, timeout);
}

int pselect(int end, fd_set *in, fd_set *out, fd_set *other, const timespec *timeout,
	    const sigset_t *mask)
{
	return blocking<"pselect">(pselect, end, in, out, other, timeout, mask);
}

int epoll_wait(int fd, epoll_event *events, int space, int timeout)
{
	return blocking<"epoll_wait">(epoll_wait, fd, events, space, timeout);
}

int epoll_pwait(int fd, epoll_event *events, int space, int timeout, const sigset_t *mask)
{
	return blocking<"epoll_pwait">(epoll_pwait, fd, events, space, timeout, mask);
}

int epoll_pwait2(int fd, epoll_event *events, int space, const timespec *timeout,
		 const sigset_t *mask)
{
	return blocking<"epoll_pwait2">(epoll_pwait2, fd, events, space, timeout, mask);
}

/* Reading and writing */

ssize_t read(int fd, void *buffer, size_t size)
{
	return blocking<"read">(read, fd, buffer, size);
}

ssize_t __read_chk(int fd, void *buffer, size_t size, size_t space)
{
	return blocking<"__read_chk">(__read_chk, fd, buffer, size, space);
}

ssize_t readv(int fd, const iovec *parts, int count)
{
	return blocking<"readv">(readv, fd, parts, count);
}

ssize_t pread(int fd, void *buffer, size_t size, off_t offset)
{
	return blocking<"pread">(pread, fd, buffer, size, offset);
}

ssize_t pread64(int fd, void *buffer, size_t size, off64_t offset)
{
	return blocking<"pread64">(pread64, fd, buffer, size, offset);
}

ssize_t __pread_chk(int fd, void *buffer, size_t size, off_t offset, size_t space)
{
	return blocking<"__pread_chk">(__pread_chk, fd, buffer, size, offset, space);
}

ssize_t __pread64_chk(int fd, void *buffer, size_t size, off64_t offset, size_t space)
{
	return blocking<"__pread64_chk">(__pread64_chk, fd, buffer, size, offset, space);
}

ssize_t preadv(int fd, const iovec *parts, int count, off_t offset)
{
	return blocking<"preadv">(preadv, fd, parts, count, offset);
}

ssize_t preadv64(int fd, const iovec *parts, int count, off64_t offset)
{
	return blocking<"preadv64">(preadv64, fd, parts, count, offset);
}

ssize_t preadv2(int fd, const iovec *parts, int count, off_t offset, int flags)
{
	return blocking<"preadv2">(preadv2, fd, parts, count, offset, flags);
}

ssize_t preadv64v2(int fd, const iovec *parts, int count, off64_t offset, int flags)
{
	return blocking<"preadv64v2">(preadv64v2, fd, parts, count, offset, flags);
}

ssize_t write(int fd, const void *buffer, size_t size)
{
	return blocking<"write">(write, fd, buffer, size);
}

ssize_t writev(int fd, const iovec *parts, int count)
{
	return blocking<"writev">(writev, fd, parts, count);
}

ssize_t pwrite(int fd, const void *buffer, size_t size, off_t offset)
{
	return blocking<"pwrite">(pwrite, fd, buffer, size, offset);
}

ssize_t pwrite64(int fd, const void *buffer, size_t size, off64_t offset)
{
	return blocking<"pwrite64">(pwrite64, fd, buffer, size, offset);
}

ssize_t pwritev(int fd, const iovec *parts, int count, off_t offset)
{
	return blocking<"pwritev">(pwritev, fd, parts, count, offset);
}

ssize_t pwritev64(int fd, const iovec *parts, int count, off64_t offset)
{
	return blocking<"pwritev64">(pwritev64, fd, parts, count, offset);
}

ssize_t pwritev2(int fd, const iovec *parts, int count, off_t offset, int flags)
{
	return blocking<"pwritev2">(pwritev2, fd, parts, count, offset, flags);
}

ssize_t pwritev64v2(int fd, const iovec *parts, int count, off64_t offset, int flags)
{
	return blocking<"pwritev64v2">(pwritev64v2, fd, parts, count, offset, flags);
}

int eventfd_read(int fd, eventfd_t *value)
{
	return blocking<"eventfd_read">(eventfd_read, fd, value);
}

int eventfd_write(int fd, eventfd_t value)
{
	return blocking<"eventfd_write">(eventfd_write, fd, value);
}

ssize_t recv(int fd, void *buffer, size_t size, int flags)
{
	return blocking<"recv">(recv, fd, buffer, size, flags);
}

ssize_t __recv_chk(int fd, void *buffer, size_t size, size_t space, int flags)
{
	return blocking<"__recv_chk">(__recv_chk, fd, buffer, size, space, flags);
}

ssize_t recvfrom(int fd, void *buffer, size_t size, int flags, sockaddr *address, socklen_t *length)
{
	return blocking<"recvfrom">(recvfrom, fd, buffer, size, flags, address, length);
}

ssize_t __recvfrom_chk(int fd, void *buffer, size_t size, size_t space, int flags,
		       sockaddr *address, socklen_t *length)
{
	return blocking<"__recvfrom_chk">(__recvfrom_chk, fd, buffer, size, space, flags, address,
					  length);
}

ssize_t recvmsg(int fd, msghdr *message, int flags)
{
	return blocking<"recvmsg">(recvmsg, fd, message, flags);
}

int recvmmsg(int fd, mmsghdr *messages, unsigned count, int flags, timespec *timeout)
{
	return blocking<"recvmmsg">(recvmmsg, fd, messages, count, flags, timeout);
}

ssize_t send(int fd, const void *buffer, size_t size, int flags)
{
	return blocking<"send">(send, fd, buffer, size, flags);
}

ssize_t sendto(int fd, const void *buffer, size_t size, int flags, const sockaddr *address,
	       socklen_t length)
{
	return blocking<"sendto">(sendto, fd, buffer, size, flags, address, length);
}

ssize_t sendmsg(int fd, const msghdr *message, int flags)
{
	return blocking<"sendmsg">(sendmsg, fd, message, flags);
}

int sendmmsg(int fd, mmsghdr *messages, unsigned count, int flags)
{
	return blocking<"sendmmsg">(sendmmsg, fd, messages, count, flags);
}

int accept(int fd, sockaddr *address, socklen_t *length)
{
	return blocking<"accept">(accept, fd, address, length);
}

int accept4(int fd, sockaddr *address, socklen_t *length, int flags)
{
	return blocking<"accept4">(accept4, fd, address, length, flags);
}

int connect(int fd, const sockaddr *address, socklen_t length)
{
	return blocking<"connect">(connect, fd, address, length);
}

/* Queues and semaphores of the system */

int semop(int id, sembuf *what, size_t count) noexcept
{
	return blocking<"semop">(semop, id, what, count);
}

int semtimedop(int id, sembuf *what, size_t count, const timespec *timeout) noexcept
{
	return blocking<"semtimedop">(semtimedop, id, what, count, timeout);
}

int msgsnd(int id, const void *message, size_t size, int flags)
{
	return blocking<"msgsnd">(msgsnd, id, message, size, flags);
}

ssize_t msgrcv(int id, void *message, size_t size, long type, int flags)
{
	return blocking<"msgrcv">(msgrcv, id, message, size, type, flags);
}

int mq_send(mqd_t queue, const char *message, size_t size, unsigned priority)
{
	return blocking<"mq_send">(mq_send, queue, message, size, priority);
}

int mq_timedsend(mqd_t queue, const char *message, size_t size, unsigned priority,
		 const timespec *until)
{
	return blocking<"mq_timedsend">(mq_timedsend, queue, message, size, priority, until);
}

ssize_t mq_receive(mqd_t queue, char *message, size_t size, unsigned *priority)
{
	return blocking<"mq_receive">(mq_receive, queue, message, size, priority);
}

ssize_t mq_timedreceive(mqd_t queue, char *message, size_t size, unsigned *priority,
			const timespec *until)
{
	return blocking<"mq_timedreceive">(mq_timedreceive, queue, message, size, priority, until);
}

/* From one descriptor to another */

ssize_t splice(int from, off64_t *at, int to, off64_t *to_at, size_t size, unsigned flags)
{
	return blocking<"splice">(splice, from, at, to, to_at, size, flags);
}

ssize_t tee(int from, int to, size_t size, unsigned flags)
{
	return blocking<"tee">(tee, from, to, size, flags);
}

ssize_t vmsplice(int fd, const iovec *parts, size_t count, unsigned flags)
{
	return blocking<"vmsplice">(vmsplice, fd, parts, count, flags);
}

ssize_t sendfile(int to, int from, off_t *at, size_t size) noexcept
{
	return blocking<"sendfile">(sendfile, to, from, at, size);
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t size) noexcept
{
	return blocking<"sendfile64">(sendfile64, to, from, at, size);
}

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *to_at, size_t size, unsigned flags)
{
	return blocking<"copy_file_range">(copy_file_range, from, at, to, to_at, size, flags);
}

/* Descriptors */

int close(int fd)
{
	if (!closes(fd)) {
		errno = EBADF;
		return -1;
	}
	return next<"close">(close, fd);
}

int close_range(unsigned first, unsigned last, int flags) noexcept
{
	return close_all(first, last, flags);
}

void closefrom(int first) noexcept
{
	close_all(static_cast<unsigned>(std::max(first, 0)), ~0U, 0);
}

int dup(int fd) noexcept
{
	const int copy = next<"dup">(dup, fd);

	if (copy >= 0)
		copied(fd, copy);
	return copy;
}

int dup2(int fd, int to) noexcept
{
	if (fd != to)
		replaces(to);

	const int copy = next<"dup2">(dup2, fd, to);

	if (copy >= 0)
		copied(fd, copy);
	return copy;
}

int dup3(int fd, int to, int flags) noexcept
{
	if (fd != to)
		replaces(to);

	const int copy = next<"dup3">(dup3, fd, to, flags);

	if (copy >= 0)
		copied(fd, copy);
	return copy;
}

int fcntl(int fd, int command, ...)
{
	va_list args;

	va_start(args, command);
	void *argument = va_arg(args, void *);
	va_end(args);

	const int result = next<"fcntl">(fcntl, fd, command, argument);

	if (result >= 0 && (command == F_DUPFD || command == F_DUPFD_CLOEXEC))
		copied(fd, result);
	return result;
}

int fcntl64(int fd, int command, ...)
{
	va_list args;

	va_start(args, command);
	void *argument = va_arg(args, void *);
	va_end(args);

	const int result = next<"fcntl64">(fcntl64, fd, command, argument);

	if (result >= 0 && (command == F_DUPFD || command == F_DUPFD_CLOEXEC))
		copied(fd, result);
	return result;
}

/* What languages with a runtime of their own use instead */

long syscall(long number, ...) noexcept
{
	long a[6];
	va_list args;

	va_start(args, number);
	for (long &one : a)
		one = va_arg(args, long);
	va_end(args);

	switch (number) {
	case SYS_ioctl:
		return ioctl(static_cast<int>(a[0]), static_cast<unsigned long>(a[1]), a[2]);
	case SYS_futex:
		switch (a[1] & FUTEX_CMD_MASK) {
		case FUTEX_WAKE:
		case FUTEX_WAKE_BITSET:
		case FUTEX_WAKE_OP:
		case FUTEX_REQUEUE:
		case FUTEX_CMP_REQUEUE:
		case FUTEX_UNLOCK_PI:
			wakes();
			break;
		default:
			leaves(moment::block);
		}
		break;
	case SYS_tgkill:
	case SYS_tkill:
	case SYS_kill:
		wakes();
		break;
	case SYS_io_uring_enter:
	case SYS_futex_waitv:
	case SYS_read:
	case SYS_write:
	case SYS_readv:
	case SYS_writev:
	case SYS_poll:
	case SYS_ppoll:
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
	case SYS_nanosleep:
	case SYS_clock_nanosleep:
		leaves(moment::block);
		break;
	case SYS_close:
		return close(static_cast<int>(a[0]));
	case SYS_close_range:
		return close_range(static_cast<unsigned>(a[0]), static_cast<unsigned>(a[1]),
				   static_cast<int>(a[2]));
	case SYS_dup:
		return dup(static_cast<int>(a[0]));
	case SYS_dup2:
		return dup2(static_cast<int>(a[0]), static_cast<int>(a[1]));
	case SYS_dup3:
		return dup3(static_cast<int>(a[0]), static_cast<int>(a[1]), static_cast<int>(a[2]));
	case SYS_fcntl:
		return fcntl(static_cast<int>(a[0]), static_cast<int>(a[1]), a[2]);
	}
	return next<"syscall">(syscall, number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

} // extern "C"

#pragma GCC visibility pop
