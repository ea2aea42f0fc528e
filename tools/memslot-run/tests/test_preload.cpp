// SPDX-License-Identifier: GPL-2.0
/*
 * The interposed functions and the session behind them, linked into this program instead of
 * preloaded, with a fake in place of the kernel: which calls of a VMM commit, and which do not.
 *
 * What the test itself waits with must not commit: raw system calls only.
 */
#include "check.hpp"
#include "fake_device.hpp"
#include "raw_syscall.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <fcntl.h>
#include <functional>
#include <linux/falloc.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <string>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

/**
 * The library's clock, linked into this program in place of libc's: it runs at a twentieth of the
 * speed, so that even a busy machine is through with what a test does before the deadline of a
 * transaction is over.
 */
extern "C" int clock_gettime(clockid_t which, timespec *time) noexcept
{
	constexpr long second = 1'000'000'000;
	const long error =
		memslot_run::raw_syscall(SYS_clock_gettime, which, memslot_run::arg(time));
	const long nanoseconds = (time->tv_sec * second + time->tv_nsec) / 20;

	*time = {nanoseconds / second, nanoseconds % second};
	return static_cast<int>(error);
}

using memslot_run::raw_syscall;
using test::call;
using test::holds;
using test::same;
using test::fake::event;

namespace fake = test::fake;

namespace {

constexpr std::uint64_t page = 0x1000;

void wait_ms(long milliseconds)
{
	const timespec time{milliseconds / 1000, milliseconds % 1000 * 1'000'000};

	raw_syscall(SYS_nanosleep, memslot_run::arg(&time));
}

/** Waits for it at most a minute or two: what has not come by then does not come. */
bool soon(const std::function<bool()> &is)
{
	for (int i = 0; i < 60000; i++) {
		if (is())
			return true;
		wait_ms(1);
	}
	return is();
}

/** A VM with host memory, and a vCPU that has run; slot 0 maps pages 0 to 3, slot 1 maps page 8. */
class guest {
public:
	guest()
	    : memory_(mmap(nullptr, 64 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			   -1, 0))
	{
		fake::reset();
		fd = ioctl(fake::kvm_fd, KVM_CREATE_VM, 0UL);
		set(0, 0, 4);
		set(1, 8, 1);
		ioctl(fake::vcpu_fd, KVM_RUN, 0UL);
		commits_ = fake::count(event::COMMIT);
	}

	guest(const guest &) = delete;
	guest &operator=(const guest &) = delete;

	~guest()
	{
		if (fd >= 0)
			close(fd);
		munmap(memory_, 64 * page);
	}

	/** The host address of a guest page. */
	[[nodiscard]] char *host(std::uint64_t gfn) const
	{
		return static_cast<char *>(memory_) + gfn * page;
	}

	int set(unsigned slot, std::uint64_t gfn, std::uint64_t pages,
		std::uint32_t flags = 0) const
	{
		auto one = call(slot, gfn * page, pages * page,
				reinterpret_cast<std::uintptr_t>(host(gfn)), flags);

		return ioctl(fd, KVM_SET_USER_MEMORY_REGION, &one);
	}

	/** A change that is only begun: the guest waits for more to come. */
	void change()
	{
		same(set(1, 8, 0), 0, "delete");
		holds(!has(8), "the memory is gone at once");
		committed();
	}

	/** True if KVM has memory of the VMM at this page. */
	[[nodiscard]] bool has(std::uint64_t gfn) const
	{
		for (const auto &[which, one] : fake::layout().slots) {
			if (one.gpa <= gfn * page && gfn * page < one.gpa + one.size)
				return one.hva - one.gpa ==
				       reinterpret_cast<std::uintptr_t>(memory_);
		}
		return false;
	}

	/** KVM has again what it had before change(). */
	void undo()
	{
		commit();
		/* It may be there already */
		set(1, 8, 1);
		commits_ = fake::count(event::COMMIT);
	}

	/** A moment that commits. */
	static void commit()
	{
		ioctl(fake::vcpu_fd, KVM_RUN, 0UL);
	}

	/** True if there was a commit since the last question. */
	bool committed()
	{
		const unsigned now = fake::count(event::COMMIT);
		const bool is = now != commits_;

		commits_ = now;
		return is;
	}

	/** True if the calling thread made the last commit. */
	[[nodiscard]] static bool by_me()
	{
		const auto all = fake::events();
		const auto last = std::find_if(all.rbegin(), all.rend(), [](const event &one) {
			return one.what == event::COMMIT;
		});

		return last != all.rend() && last->by == raw_syscall(SYS_gettid);
	}

	int fd = -1;

private:
	void *memory_;
	unsigned commits_ = 0;
};

/** Another thread in the middle of a transaction, with a mutex in its hands. */
class transaction_elsewhere {
public:
	explicit transaction_elsewhere(guest &g)
	    : thread_([this, &g] {
		      pthread_mutex_lock(&mutex_);
		      g.change();
		      begun_ = true;
		      while (!over_)
			      wait_ms(1);
		      pthread_mutex_unlock(&mutex_);
	      })
	{
		while (!begun_)
			wait_ms(1);
	}

	transaction_elsewhere(const transaction_elsewhere &) = delete;
	transaction_elsewhere &operator=(const transaction_elsewhere &) = delete;

	~transaction_elsewhere()
	{
		over_ = true;
		thread_.join();
	}

private:
	pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
	std::atomic<bool> begun_ = false;
	std::atomic<bool> over_ = false;
	std::thread thread_;
};

/** Something that a thread does with changes pending, outside and inside a mutex. */
struct act {
	const char *name;
	std::function<void(guest &)> what;
	bool commits;
	bool commits_locked;
};

void test_moments()
{
	static pthread_mutex_t other = PTHREAD_MUTEX_INITIALIZER;
	static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
	static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
	static sem_t semaphore;
	static int event_fd = eventfd(100, EFD_NONBLOCK);
	static std::uint32_t word;
	static char elsewhere[2 * page] __attribute__((aligned(4096)));
	static int file = memfd_create("test", 0);

	sem_init(&semaphore, 0, 100);

	const std::vector<act> acts{
		{"KVM_RUN", [](guest &) { ioctl(fake::vcpu_fd, KVM_RUN, 0UL); }, true, true},
		{"another vCPU ioctl", [](guest &) { ioctl(fake::vcpu_fd, KVM_GET_MSRS, nullptr); },
		 true, true},
		{"KVM_IOEVENTFD", [](guest &g) { ioctl(g.fd, KVM_IOEVENTFD, nullptr); }, false,
		 false},
		{"KVM_IRQFD", [](guest &g) { ioctl(g.fd, KVM_IRQFD, nullptr); }, true, true},
		{"KVM_SIGNAL_MSI", [](guest &g) { ioctl(g.fd, KVM_SIGNAL_MSI, nullptr); }, true,
		 true},
		{"KVM_IRQ_LINE", [](guest &g) { ioctl(g.fd, KVM_IRQ_LINE, nullptr); }, true, true},
		{"a call of KVM that nobody knows",
		 [](guest &g) { ioctl(g.fd, _IO(KVMIO, 0xff), nullptr); }, true, true},
		{"the same of a device",
		 [](guest &) { ioctl(event_fd, _IO(KVMIO, 0xff), nullptr); }, true, true},
		{"coalesced MMIO",
		 [](guest &g) { ioctl(g.fd, KVM_REGISTER_COALESCED_MMIO, nullptr); }, false, false},
		{"KVM_CHECK_EXTENSION", [](guest &g) { ioctl(g.fd, KVM_CHECK_EXTENSION, 0UL); },
		 false, false},
		{"KVM_CREATE_VCPU", [](guest &g) { ioctl(g.fd, KVM_CREATE_VCPU, 0UL); }, true,
		 true},
		{"a request with its sign extended",
		 [](guest &g) {
			 ioctl(g.fd, static_cast<unsigned long>(static_cast<int>(KVM_IOEVENTFD)),
			       nullptr);
		 },
		 false, false},
		{"dirty log of the slot that is gone",
		 [](guest &g) {
			 kvm_dirty_log log{};

			 log.slot = 1;
			 ioctl(g.fd, KVM_GET_DIRTY_LOG, &log);
		 },
		 false, false},
		{"dirty log of another slot",
		 [](guest &g) {
			 kvm_dirty_log log{};

			 ioctl(g.fd, KVM_GET_DIRTY_LOG, &log);
		 },
		 false, false},
		{"an ioctl of something else", [](guest &) { ioctl(event_fd, FIONREAD, &word); },
		 false, false},

		{"mutex",
		 [](guest &) {
			 pthread_mutex_lock(&other);
			 pthread_mutex_unlock(&other);
		 },
		 true, false},
		{"rwlock",
		 [](guest &) {
			 pthread_rwlock_rdlock(&rwlock);
			 pthread_rwlock_unlock(&rwlock);
		 },
		 true, false},
		{"pthread_cond_signal", [](guest &) { pthread_cond_signal(&condition); }, true,
		 false},
		{"pthread_kill", [](guest &) { pthread_kill(pthread_self(), 0); }, true, false},
		{"futex wake", [](guest &) { syscall(SYS_futex, &word, FUTEX_WAKE, 1, 0, 0, 0); },
		 true, false},
		{"futex wait", [](guest &) { syscall(SYS_futex, &word, FUTEX_WAIT, 1, 0, 0, 0); },
		 true, true},
		{"pthread_cond_timedwait",
		 [](guest &) {
			 const timespec past{};

			 pthread_mutex_lock(&other);
			 pthread_cond_timedwait(&condition, &other, &past);
			 pthread_mutex_unlock(&other);
		 },
		 true, true},
		{"semop", [](guest &) { semop(-1, nullptr, 0); }, true, true},
		{"semtimedop", [](guest &) { semtimedop(-1, nullptr, 0, nullptr); }, true, true},
		{"msgsnd", [](guest &) { msgsnd(-1, elsewhere, 0, 0); }, true, true},
		{"msgrcv", [](guest &) { msgrcv(-1, elsewhere, 0, 0, 0); }, true, true},
		{"mq_send", [](guest &) { mq_send(-1, elsewhere, 0, 0); }, true, true},
		{"mq_receive", [](guest &) { mq_receive(-1, elsewhere, 0, nullptr); }, true, true},
		{"preadv2", [](guest &) { preadv2(-1, nullptr, 0, 0, 0); }, true, true},
		{"pwritev2", [](guest &) { pwritev2(-1, nullptr, 0, 0, 0); }, true, true},
		{"splice", [](guest &) { splice(-1, nullptr, -1, nullptr, 0, 0); }, true, true},
		{"sendfile", [](guest &) { sendfile(-1, -1, nullptr, 0); }, true, true},
		{"rwlock with a clock",
		 [](guest &) {
			 const timespec past{};

			 pthread_rwlock_clockwrlock(&rwlock, CLOCK_MONOTONIC, &past);
			 pthread_rwlock_unlock(&rwlock);
		 },
		 true, false},
		{"sem_post", [](guest &) { sem_post(&semaphore); }, true, true},
		{"sem_wait", [](guest &) { sem_wait(&semaphore); }, true, true},
		{"poll", [](guest &) { poll(nullptr, 0, 0); }, true, true},
		{"read", [](guest &) { (void)!read(event_fd, elsewhere, 8); }, true, true},
		{"write", [](guest &) { (void)!write(file, "x", 1); }, true, true},
		{"nanosleep",
		 [](guest &) {
			 const timespec none{};

			 nanosleep(&none, nullptr);
		 },
		 true, true},
		{"pthread_create and pthread_join", [](guest &) { std::thread([] {}).join(); },
		 true, true},
		{"fork",
		 [](guest &) {
			 const pid_t child = fork();

			 if (!child)
				 _exit(0);
			 waitpid(child, nullptr, 0);
		 },
		 true, true},

		/* KVM has let go of what was deleted, and takes what it gets when a vCPU asks */
		{"madvise below the slot",
		 [](guest &g) { madvise(g.host(8), page, MADV_DONTNEED); }, false, false},
		{"mprotect below it",
		 [](guest &g) { mprotect(g.host(8), page, PROT_READ | PROT_WRITE); }, false, false},
		{"a hole in a file",
		 [](guest &) {
			 fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, page);
		 },
		 false, false},
	};

	for (const act &one : acts) {
		static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;
		const std::string name = one.name;
		guest g;

		/* Without a mutex the time is short: on a busy machine it may be up before the act
		 */
		bool here = false;

		for (int i = 0; i < 20 && one.commits && !here; i++) {
			g.undo();
			g.change();
			one.what(g);
			here = g.committed() && guest::by_me();
		}
		same(here, one.commits, name);

		g.undo();
		pthread_mutex_lock(&big);
		g.change();
		one.what(g);
		same(g.committed(), one.commits_locked, name + ", with a mutex held");
		pthread_mutex_unlock(&big);
		if (!one.commits_locked)
			holds(g.committed(), name + ", then released");
	}
}

/** What a call has done is true when it returns. */
void test_truth()
{
	static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;
	guest g;

	pthread_mutex_lock(&big);
	g.set(2, 16, 1);
	holds(g.has(16), "created: an interrupt can tell the guest");
	g.set(2, 16, 1, KVM_MEM_LOG_DIRTY_PAGES);
	same(fake::layout().slots.at({0, 2}).flags, KVM_MEM_LOG_DIRTY_PAGES,
	     "logged: memory can be copied");
	g.set(2, 16, 0);
	holds(!g.has(16), "deleted: nobody writes there any more");
	holds(fake::layout().covers(16 * page, page), "and yet there is no hole");
	g.set(2, 16, 1);
	holds(!g.has(16), "created where the guest waits: it waits on");
	pthread_mutex_unlock(&big);
	holds(g.has(16), "until the end");
	g.committed();
	g.set(0, 0, 0);
	holds(soon([] { return !fake::layout().covers(0, page); }), "gone for good, after a while");
}

void test_dirty_log()
{
	static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;
	kvm_dirty_log get{};
	kvm_clear_dirty_log clear{};
	guest g;

	get.slot = 1;
	clear.slot = 1;
	pthread_mutex_lock(&big);
	g.change();
	g.set(1, 8, 1, KVM_MEM_LOG_DIRTY_PAGES);
	ioctl(g.fd, KVM_GET_DIRTY_LOG, &get);
	holds(g.committed(), "KVM_GET_DIRTY_LOG of a slot that was created again");
	ioctl(g.fd, KVM_GET_DIRTY_LOG, &get);
	holds(!g.committed(), "that is in KVM by now");
	g.change();
	g.set(1, 8, 1, KVM_MEM_LOG_DIRTY_PAGES);
	ioctl(g.fd, KVM_CLEAR_DIRTY_LOG, &clear);
	holds(g.committed(), "KVM_CLEAR_DIRTY_LOG of such a slot");
	pthread_mutex_unlock(&big);
}

/** Who holds no mutex ends the transaction with the last piece of what was taken away. */
void test_no_mutex()
{
	guest g;

	/* The time may be up between the two on a busy machine */
	bool together = false;

	for (int i = 0; i < 20 && !together; i++) {
		g.set(0, 0, 0);
		g.committed();
		g.set(0, 0, 4);
		together = g.committed() && guest::by_me() && g.has(0);
		guest::commit();
	}
	holds(together, "deleted and created again: at once");
}

/** A vCPU that meets withdrawn memory gets on when the memory is back, and the VMM never knows. */
void test_vcpu_waits()
{
	static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;
	guest g;
	std::atomic<int> runs = 0;
	std::atomic<bool> back = false;

	fake::run = [&] {
		runs++;
		return g.has(8) ? 0 : EFAULT;
	};
	std::atomic<bool> go = false;
	std::thread vcpu([&] {
		while (!go)
			raw_syscall(SYS_sched_yield);
		same(ioctl(fake::vcpu_fd, KVM_RUN, 0UL), 0, "KVM_RUN");
		holds(back, "not before the memory is back");
	});
	pthread_mutex_lock(&big);
	g.change();
	go = true;
	holds(soon([&] { return runs > 3; }), "it looks now and then");
	back = true;
	g.set(1, 8, 1);
	pthread_mutex_unlock(&big);
	vcpu.join();

	/* Taken away for good: the vCPU sees what it would see without us */
	fake::run = [] { return fake::layout().covers(8 * page, page) ? EFAULT : 0; };
	g.change();
	same(ioctl(fake::vcpu_fd, KVM_RUN, 0UL), 0, "when the time is up");
	fake::run = nullptr;
	g.undo();

	/* The VMM's own trouble is its own, also while memory comes and goes */
	runs = 0;
	fake::run = [&] {
		runs++;
		return EFAULT;
	};
	same(ioctl(fake::vcpu_fd, KVM_RUN, 0UL), -1, "KVM_RUN");
	same(errno, EFAULT, "fails");
	same(runs.load(), 1, "at once");
	std::atomic<bool> stop = false;
	std::thread changing([&] {
		while (!stop) {
			g.set(0, 0, 0);
			g.set(0, 0, 4);
			wait_ms(1);
		}
	});
	same(ioctl(fake::vcpu_fd, KVM_RUN, 0UL), -1, "KVM_RUN");
	same(errno, EFAULT, "fails in the end");
	stop = true;
	changing.join();

	/* What else the VMM wants of its vCPU comes from KVM_RUN */
	{
		const transaction_elsewhere other(g);

		runs = 0;
		fake::run = [&] { return ++runs < 3 ? EFAULT : EINTR; };
		same(ioctl(fake::vcpu_fd, KVM_RUN, 0UL), -1, "KVM_RUN");
		same(errno, EINTR, "is interrupted");
	}
	fake::run = nullptr;
}

/** While a commit waits for a page fault that the VMM serves, the VMM can serve it. */
void test_nobody_waits_for_a_commit()
{
	guest g;
	std::atomic<bool> served = false;
	const int idle = fake::stalled;

	fake::stall = true;
	std::thread changing([&] {
		g.set(2, 16, 1);
		holds(served, "a commit waits for the fault");
	});
	while (fake::stalled == idle)
		wait_ms(1);

	std::thread serving([&] {
		void *scratch = mmap(nullptr, page, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		const int file = memfd_create("test", 0);

		mprotect(scratch, page, PROT_READ);
		madvise(scratch, page, MADV_DONTNEED);
		munmap(scratch, page);
		static_cast<void>(!ftruncate(file, page));
		fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, page);
		close(file);
		close(dup(g.fd));
		ioctl(g.fd, KVM_SIGNAL_MSI, nullptr);
		ioctl(fake::vcpu_fd, KVM_GET_REGS, nullptr);
		ioctl(fake::vcpu_fd, KVM_RUN, 0UL);
		served = true;
		fake::stall = false;
	});
	serving.join();
	changing.join();
	holds(served, "the fault was served");
}

/** A memory transaction as QEMU makes it, against vCPUs that look all the time. */
void test_transactions()
{
	static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;
	static pthread_mutex_t slots = PTHREAD_MUTEX_INITIALIZER;
	constexpr unsigned threads = 4;
	constexpr unsigned rounds = 600;
	guest g;
	std::atomic<int> failed = 0;

	fake::watch_gpa = 0;
	fake::watch_size = 4 * page;

	const auto set = [&](unsigned slot, std::uint64_t gfn, std::uint64_t pages) {
		pthread_mutex_lock(&slots);
		failed += g.set(slot, gfn, pages) != 0;
		pthread_mutex_unlock(&slots);
	};
	bool split = false;
	const auto vcpu = [&] {
		for (unsigned i = 0; i < rounds; i++) {
			pthread_mutex_lock(&big);
			/* In two, or together again; deletions first, as QEMU */
			if (split)
				set(2, 2, 0);
			set(0, 0, 0);
			set(0, 0, split ? 4 : 2);
			if (!split)
				set(2, 2, 2);
			split = !split;
			pthread_mutex_unlock(&big);
			ioctl(fake::vcpu_fd, KVM_RUN, 0UL);
		}
	};
	const unsigned before = fake::count(event::COMMIT);
	std::vector<std::thread> vcpus;

	for (unsigned i = 0; i < threads; i++)
		vcpus.emplace_back(vcpu);
	for (auto &one : vcpus)
		one.join();

	same(failed.load(), 0, "calls that failed");
	holds(fake::covered(), "no layout had a hole");
	/* Three deletions and two ends for what is cut and put together */
	same(fake::count(event::COMMIT) - before, threads * rounds / 2 * 5,
	     "one commit for each deletion, and one for the rest");
	same(fake::count(event::SINGLE), 0U, "none by KVM itself");
}

void test_other_threads()
{
	static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;
	guest g;
	std::atomic<int> step = 0;

	std::thread collector([&] {
		pthread_mutex_lock(&big);
		g.change();
		step = 1;
		while (step != 2)
			wait_ms(1);
		/* Another thread's: this one has none of its own */
		const bool over = !fake::layout().covers(8 * page, page);

		pthread_mutex_unlock(&big);
		holds(!over, "another thread's slots, KVM_RUN, poll and mutex end nothing");
		holds(!fake::layout().covers(8 * page, page),
		      "the collecting thread's unlocking does");

		g.undo();
		pthread_mutex_lock(&big);
		g.change();
		step = 3;
		wait_ms(20);
		pthread_mutex_unlock(&big);
	});

	while (step != 1)
		wait_ms(1);
	static pthread_mutex_t other = PTHREAD_MUTEX_INITIALIZER;

	pthread_mutex_lock(&other);
	g.set(2, 16, 1);
	pthread_mutex_unlock(&other);
	poll(nullptr, 0, 0);
	ioctl(fake::vcpu_fd, KVM_RUN, 0UL);
	step = 2;
	while (step != 3)
		wait_ms(1);
	ioctl(g.fd, KVM_SIGNAL_MSI, nullptr);
	holds(!fake::layout().covers(8 * page, page),
	      "another thread's call of KVM waits for the end of the transaction");
	collector.join();
}

void test_deadline()
{
	guest g;

	g.change();
	holds(soon([&] { return g.committed(); }), "nobody else commits: the time is up");

	/* One batch gone, the next begun by another thread is none of this one's */
	g.undo();
	g.change();
	holds(soon([&] { return g.committed(); }), "again");
	g.undo();

	const transaction_elsewhere other(g);

	poll(nullptr, 0, 0);
	holds(!g.committed(), "a batch that is over leaves no mark");
}

void test_errors()
{
	guest g;
	auto overlap = call(5, 0, page, 0x10000000);

	g.change();
	errno = 0;
	same(ioctl(g.fd, KVM_SET_USER_MEMORY_REGION, &overlap), -1, "overlap");
	same(errno, EEXIST, "with KVM's errno");
	guest::commit();
	holds(g.committed(), "the rest was collected and went out");

	g.undo();
	g.change();
	fake::fail_commit = EBUSY;
	guest::commit();
	holds(soon([] { return fake::count(event::SINGLE) != 0; }), "busy for good");
	same(fake::count(event::SINGLE), 1U, "KVM got the call");
	same(fake::layout().slots.size(), 1U, "nothing is lost");
	same(g.set(2, 16, 1), 0, "one that is created");
	same(fake::count(event::SINGLE), 2U, "KVM got that, too");
	fake::fail_commit = 0;

	guest next;
	static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;

	pthread_mutex_lock(&big);
	next.change();
	errno = 1234;
	pthread_mutex_unlock(&big);
	same(errno, 1234, "a commit leaves errno alone");
}

void test_descriptors()
{
	guest g;
	auto one = call(2, 0x20000, page, 0x10000000);
	const int copy = dup(g.fd);

	g.change();
	same(ioctl(copy, KVM_SET_USER_MEMORY_REGION, &one), 0, "by a copy");
	same(fake::count(event::SINGLE), 0U, "was collected");
	guest::commit();
	holds(g.committed(), "and committed");

	/* One that came by a way that nobody saw */
	const auto hidden = static_cast<int>(raw_syscall(SYS_dup, g.fd));

	one.memory_size = 0;
	same(ioctl(hidden, KVM_SET_USER_MEMORY_REGION, &one), 0, "by a copy that was not seen");
	same(fake::count(event::SINGLE), 0U, "was collected, too");
	guest::commit();
	g.committed();

	const int own = fake::memslot_fd;

	same(close(own), -1, "our descriptor is not the VMM's to close");
	same(errno, EBADF, "and not there");
	dup2(2, own);
	g.undo();
	g.change();
	guest::commit();
	holds(g.committed(), "dup2() over it did no harm");
	close(own);

	g.undo();
	close(g.fd);
	g.fd = hidden;
	close(copy);
	g.change();
	guest::commit();
	holds(g.committed(), "a VM lives as long as one descriptor");

	g.undo();
	g.change();
	close_range(4, ~0U, 0);
	g.fd = -1;
	holds(g.committed(), "closing the last one commits");

	/* What closes everything must not close what the next VM needs */
	const int high = fcntl(1, F_DUPFD, 200);

	close_range(3, 50, 0);
	guest next;

	same(fcntl(fake::memslot_fd, F_GETFD), FD_CLOEXEC, "ours is open");
	close_range(static_cast<unsigned>(next.fd) + 1, ~0U, 0);
	same(fcntl(high, F_GETFD), -1, "others were closed");
	next.change();
	guest::commit();
	holds(next.committed(), "ours was not");
	holds(fcntl(fake::memslot_fd, F_GETFD) >= 0, "ours is still open");
}

void test_fork()
{
	guest g;
	const int own = fake::memslot_fd;
	const pid_t child = fork();

	if (!child) {
		int wrong = 0;

		wrong |= (fcntl(own, F_GETFD) != -1) << 0;
		wrong |= (g.set(1, 8, 0) != -1 || errno != EIO) << 1;
		poll(nullptr, 0, 0);
		wrong |= (fake::count(event::COMMIT) != 2) << 2;

		/* A VM of its own is one like any other */
		guest mine;

		mine.change();
		guest::commit();
		wrong |= !mine.committed() << 3;
		_exit(wrong);
	}

	int status = 0;

	waitpid(child, &status, 0);
	same(status, 0, "the child has no part in the VM, but can have its own");
	g.change();
	guest::commit();
	holds(g.committed(), "the parent goes on");

	/* NOLINTBEGIN(*vfork,*Vfork): a vfork() child runs in our memory */
	const pid_t sharing = vfork();

	if (!sharing) {
		close(g.fd);
		close(own);
		_exit(0);
	}
	/* NOLINTEND(*vfork,*Vfork) */
	waitpid(sharing, &status, 0);
	g.undo();
	g.change();
	guest::commit();
	holds(g.committed(), "what a vfork() child closes is its own");
}

void test_unbound()
{
	fake::reset();
	fake::fail_bind = EOPNOTSUPP;

	const int fd = ioctl(fake::kvm_fd, KVM_CREATE_VM, 0UL);
	auto one = call(0, 0, page, 0x10000000);

	same(ioctl(fd, KVM_SET_USER_MEMORY_REGION, &one), 0, "a VM that could not be bound");
	same(fake::count(event::SINGLE), 1U, "KVM got the call");
	same(fake::count(event::COMMIT), 0U, "the module did not");
	close(fd);
	errno = 0;
	same(ioctl(fd, KVM_SET_USER_MEMORY_REGION, &one), 0, "no VM at all");
	same(fake::count(event::SINGLE), 2U, "goes through");
}

void test_signal_handler()
{
	static int file = memfd_create("test", 0);
	static std::atomic<int> handled;
	static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;
	guest g;
	std::atomic<bool> done = false;

	/* As QEMU's: writes to an eventfd */
	std::signal(SIGUSR1, [](int) {
		(void)!write(file, "x", 1);
		handled++;
	});

	std::thread vcpu([&] {
		for (int i = 0; i % 2 || handled < 500; i++) {
			pthread_mutex_lock(&big);
			g.set(0, 0, 0);
			g.set(0, 0, i % 2 ? 4 : 3);
			pthread_mutex_unlock(&big);
		}
		done = true;
	});

	while (!done) {
		pthread_kill(vcpu.native_handle(), SIGUSR1);
		raw_syscall(SYS_sched_yield);
	}
	vcpu.join();
	same(fake::layout().slots.at({0, 0}).size, 4 * page, "handlers do no harm");
}

} // namespace

int main()
{
	test_moments();
	test_truth();
	test_dirty_log();
	test_no_mutex();
	test_vcpu_waits();
	test_nobody_waits_for_a_commit();
	test_transactions();
	test_other_threads();
	test_deadline();
	test_errors();
	test_descriptors();
	test_fork();
	test_unbound();
	test_signal_handler();
	return test::report("test_preload");
}
