// SPDX-License-Identifier: GPL-2.0
#include "session.hpp"

#include "collector.hpp"
#include "device.hpp"
#include "futex.hpp"
#include "next.hpp"
#include "raw_syscall.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <linux/kvm.h>
#include <mutex>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <type_traits>

namespace memslot_run {

constinit thread_local thread self{};

namespace {

/* KVM_SET_USER_MEMORY_REGION2: newer than Debian 12's <linux/kvm.h> */
struct user_memory_region2 {
	kvm_userspace_memory_region region;
	std::uint64_t guest_memfd_offset;
	std::uint32_t guest_memfd;
	std::uint32_t pad1;
	std::uint64_t pad2[14];
};

constexpr unsigned long set_user_memory_region2 = _IOW(KVMIO, 0x49, user_memory_region2);

/* The VM ioctls that neither need nor disturb changes that are still being collected */
constexpr std::array<unsigned long, 17> indifferent{
	KVM_CHECK_EXTENSION,
	KVM_CREATE_DEVICE,
	KVM_GET_CLOCK,
	KVM_GET_IRQCHIP,
	KVM_GET_STATS_FD,
	KVM_IOEVENTFD,
	KVM_IRQFD,
	KVM_IRQ_LINE,
	KVM_IRQ_LINE_STATUS,
	KVM_REGISTER_COALESCED_MMIO,
	KVM_RESET_DIRTY_RINGS,
	KVM_SET_CLOCK,
	KVM_SET_GSI_ROUTING,
	KVM_SET_IRQCHIP,
	KVM_SIGNAL_MSI,
	KVM_UNREGISTER_COALESCED_MMIO,
	KVM_SET_BOOT_CPU_ID,
};

/* Descriptors above are not followed; a limit that high is set by nobody for a VMM */
constexpr int max_fds = 1 << 16;

/* What a descriptor is: index + 1 of a VM, or one of these */
using fd_kind = std::uint8_t;
constexpr fd_kind FD_UNKNOWN = 0;
constexpr fd_kind FD_PASSED = 0xfe; /* a VM that could not be bound */
constexpr fd_kind FD_OWN = 0xff;    /* our /dev/memslot */

static_assert(max_vms < FD_PASSED);

[[gnu::format(printf, 1, 2)]] void say(const char *format, ...)
{
	char line[256] = "memslot-run: ";
	const std::size_t prefix = std::strlen(line);
	va_list args;

	va_start(args, format);
	/* The newline takes the place of the final 0 */
	const int wanted = std::vsnprintf(line + prefix, sizeof(line) - prefix, format, args);
	va_end(args);

	const std::size_t length =
		std::min(prefix + static_cast<std::size_t>(std::max(wanted, 0)), sizeof(line) - 1);

	line[length] = '\n';
	raw_syscall(SYS_write, 2, arg(line), static_cast<long>(length + 1));
}

std::uint64_t now() noexcept
{
	timespec time{};

	clock_gettime(CLOCK_MONOTONIC, &time);
	return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 +
	       static_cast<std::uint64_t>(time.tv_nsec);
}

timespec to_timespec(std::uint64_t nanoseconds) noexcept
{
	return {static_cast<time_t>(nanoseconds / 1'000'000'000),
		static_cast<long>(nanoseconds % 1'000'000'000)};
}

/** The kernel behind one VM. */
struct vm_kernel {
	int memslot_fd;
	/** any descriptor of the VM that is open */
	int vm_fd;

	int commit(std::span<const memslot_entry> entries, std::uint32_t flags,
		   memslot_commit &reply)
	{
		return device::commit(memslot_fd, entries, flags, reply);
	}

	int set_region(const kvm_userspace_memory_region &call)
	{
		return device::set_region(vm_fd, call);
	}

	std::uint64_t now()
	{
		return memslot_run::now();
	}

	void pause()
	{
		const timespec time = to_timespec(1'000'000);

		raw_syscall(SYS_nanosleep, arg(&time));
	}

	void tell_failed(int err, std::uint32_t reason, std::size_t calls)
	{
		say("a batch did not commit (%s, reason %u); making its %zu calls one by one, "
		    "vCPUs may see holes",
		    strerrordesc_np(err), reason, calls);
	}

	void tell_lost(const kvm_userspace_memory_region &call, int err)
	{
		say("KVM refused slot %#x at %#llx, %#llx bytes, after saying yes to it: %s",
		    call.slot, call.guest_phys_addr, call.memory_size, strerrordesc_np(err));
	}
};

using vm_collector = collector<vm_kernel>;

/* Made by mmap(), which gives it the zero bytes that it wants */
static_assert(std::is_trivially_default_constructible_v<vm_collector>);

struct vm {
	/** of the collector, as of the last unlock; read without the lock */
	std::atomic<std::uint64_t> number;
	std::atomic<std::uint64_t> deadline;

	/** protects what follows; open and descriptors also need table_lock to be changed */
	futex_lock lock;
	bool open;
	unsigned descriptors;
	bool region2;
	vm_kernel kernel;
	/** stays once it is there, for the next VM in this place */
	vm_collector *changes;
};

futex_lock table_lock;
constinit std::array<vm, max_vms> table{};
/** those at and above were never used */
std::atomic<unsigned> table_end;

std::array<std::atomic<fd_kind>, max_fds> fd_kinds;

/** Counters until, or if never, the launcher's are there. */
constinit statistics own_statistics{};
constinit std::atomic<statistics *> shared{&own_statistics};

/** Whose VMs these are: a vfork() child uses our memory but has descriptors of its own. */
std::atomic<long> owner;

statistics &counters() noexcept
{
	return *shared.load(std::memory_order_relaxed);
}

bool in_owner() noexcept
{
	return raw_syscall(SYS_getpid) == owner.load(std::memory_order_relaxed);
}

fd_kind kind_of(int fd) noexcept
{
	return fd >= 0 && fd < max_fds ? fd_kinds[fd].load(std::memory_order_acquire) : FD_UNKNOWN;
}

void set_kind(int fd, fd_kind kind) noexcept
{
	if (fd >= 0 && fd < max_fds)
		fd_kinds[fd].store(kind, std::memory_order_release);
}

bool is_vm(fd_kind kind) noexcept
{
	return kind != FD_UNKNOWN && kind <= max_vms;
}

vm *vm_of(int fd) noexcept
{
	const fd_kind kind = kind_of(fd);

	return is_vm(kind) ? &table[kind - 1U] : nullptr;
}

/** Keeps the calling thread's signal handlers out of the library. */
class inside {
public:
	inside() noexcept
	{
		self.inside.store(true, std::memory_order_relaxed);
		std::atomic_signal_fence(std::memory_order_seq_cst);
	}

	inside(const inside &) = delete;
	inside &operator=(const inside &) = delete;

	~inside()
	{
		std::atomic_signal_fence(std::memory_order_seq_cst);
		self.inside.store(false, std::memory_order_relaxed);
	}
};

/** Use of one VM; tells the other threads at its end. */
class use {
public:
	explicit use(vm &which) noexcept : vm_(which), guard_(which.lock)
	{
	}

	use(const use &) = delete;
	use &operator=(const use &) = delete;

	~use()
	{
		vm_.number.store(vm_.changes->number());
		vm_.deadline.store(vm_.changes->deadline());
	}

	void commit(moment why)
	{
		vm_.changes->commit(vm_.kernel, why);
	}

private:
	vm &vm_;
	std::lock_guard<futex_lock> guard_;
};

/**
 * The thread that commits what nobody else did in time.
 *
 * Arming costs a system call only while it sleeps longer than the new deadline: either it sees the
 * deadline when it looks again after announcing how long it will sleep, or the arming thread sees
 * the announcement.
 */
class timekeeper {
public:
	/** Returns false if there can be none. */
	bool start()
	{
		if (running_)
			return true;

		sigset_t all;
		std::uint64_t before = 0;
		pthread_attr_t attributes;
		pthread_t thread;

		/* The VMM's signals are not for it */
		sigfillset(&all);
		raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, arg(&all), arg(&before),
			    sizeof(before));
		pthread_attr_init(&attributes);
		pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
		running_ = next<"pthread_create">(pthread_create, &thread, &attributes, &run,
						  static_cast<void *>(this)) == 0;
		pthread_attr_destroy(&attributes);
		raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, arg(&before), 0, sizeof(before));
		return running_;
	}

	/** A VM got a deadline. */
	void arm(std::uint64_t deadline) noexcept
	{
		if (sleeps_until_.load() <= deadline)
			return;
		wakeups_.fetch_add(1);
		futex_wake(wakeups_);
	}

	/** The thread is gone: for the child of a fork. */
	void abandon() noexcept
	{
		running_ = false;
	}

private:
	static constexpr std::uint64_t never = ~0ULL;

	static void *run(void *keeper)
	{
		prctl(PR_SET_NAME, "memslot-run");
		static_cast<timekeeper *>(keeper)->loop();
		return nullptr;
	}

	static std::uint64_t earliest() noexcept
	{
		std::uint64_t found = never;

		for (unsigned i = 0; i < table_end.load(); i++) {
			const std::uint64_t deadline = table[i].deadline.load();

			if (deadline)
				found = std::min(found, deadline);
		}
		return found;
	}

	static void commit_late(std::uint64_t time)
	{
		for (unsigned i = 0; i < table_end.load(); i++) {
			const auto due = [time](std::uint64_t deadline) {
				return deadline && deadline <= time;
			};

			if (!due(table[i].deadline.load()))
				continue;

			const inside busy;
			use it(table[i]);

			if (due(table[i].changes->deadline()))
				it.commit(moment::deadline);
		}
	}

	[[noreturn]] void loop()
	{
		for (;;) {
			const std::uint32_t seen = wakeups_.load();
			const std::uint64_t time = now();
			const std::uint64_t next = earliest();

			if (next <= time) {
				commit_late(time);
				continue;
			}
			sleeps_until_.store(next);
			if (earliest() == next) {
				const timespec timeout = to_timespec(next - time);

				futex_wait(wakeups_, seen, next == never ? nullptr : &timeout);
			}
			sleeps_until_.store(0);
		}
	}

	/** protected by table_lock */
	bool running_ = false;
	futex_word wakeups_{0};
	/** 0 while it is awake and will look again */
	std::atomic<std::uint64_t> sleeps_until_{0};
};

constinit timekeeper keeper;

/** Memory for the changes of a VM, zero; nullptr if there is none. */
vm_collector *map_collector() noexcept
{
	const long address = raw_syscall(SYS_mmap, 0, sizeof(vm_collector), PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return is_error(address) ? nullptr : reinterpret_cast<vm_collector *>(address);
}

/** Gives a VM a place in the table; -1 if there is none. */
int enter(int vm_fd, int memslot_fd, const limits &allowed)
{
	for (unsigned i = 0; i < max_vms; i++) {
		vm &one = table[i];

		if (one.open)
			continue;
		if (!one.changes)
			one.changes = map_collector();
		if (!one.changes)
			return -1;

		use it(one);

		one.open = true;
		one.descriptors = 1;
		one.region2 = allowed.region2;
		one.kernel = {memslot_fd, vm_fd};
		one.changes->start(allowed, counters());
		table_end.store(std::max(table_end.load(), i + 1));
		return static_cast<int>(i);
	}
	return -1;
}

void vm_created(int fd)
{
	const inside busy;
	const std::lock_guard guard(table_lock);
	limits allowed{};
	int memslot_fd = -1;
	const char *why = nullptr;
	const int err = device::bind(fd, memslot_fd, allowed);

	if (err) {
		why = err == EOPNOTSUPP ? "the module does not change this kind of VM"
					: strerrordesc_np(err);
	} else if (fd >= max_fds || memslot_fd >= max_fds) {
		why = "its file descriptor is too high";
	} else if (!keeper.start()) {
		why = "no thread could be started";
	} else if (const int index = enter(fd, memslot_fd, allowed); index >= 0) {
		set_kind(memslot_fd, FD_OWN);
		set_kind(fd, static_cast<fd_kind>(index + 1));
		count(counters().vms);
		return;
	} else {
		why = "too many VMs, or no memory";
	}

	if (memslot_fd >= 0)
		device::close(memslot_fd);
	set_kind(fd, FD_PASSED);
	count(counters().vms_passed);
	say("a VM's memory calls go to KVM one by one: %s", why);
}

/** One descriptor less; the last one takes our file with it. */
void drop_descriptor(vm &of, int fd)
{
	const fd_kind kind = kind_of(fd);
	use it(of);

	set_kind(fd, FD_UNKNOWN);
	if (--of.descriptors) {
		for (int other = 0; of.kernel.vm_fd == fd && other < max_fds; other++) {
			if (kind_of(other) == kind)
				of.kernel.vm_fd = other;
		}
		return;
	}
	/* vCPUs can outlive it */
	it.commit(moment::close);
	set_kind(of.kernel.memslot_fd, FD_UNKNOWN);
	device::close(of.kernel.memslot_fd);
	of.open = false;
}

/** A VM's descriptor that came by a way that is not interposed, say over a socket. */
vm *adopt(int fd)
{
	const std::lock_guard guard(table_lock);

	if (kind_of(fd) != FD_UNKNOWN)
		return vm_of(fd);
	for (unsigned i = 0; fd < max_fds && i < table_end.load(); i++) {
		vm &one = table[i];

		if (!one.open || !device::same_file(fd, one.kernel.vm_fd))
			continue;

		use it(one);

		one.descriptors++;
		set_kind(fd, static_cast<fd_kind>(i + 1));
		return &one;
	}
	return nullptr;
}

int pass(int fd, unsigned long request, void *argument)
{
	count(counters().passed);
	return device::forward(fd, request, argument);
}

int set_region(int fd, unsigned long request, void *argument)
{
	const inside busy;
	vm *of = vm_of(fd);

	if (!of && in_owner() && kind_of(fd) == FD_UNKNOWN)
		of = adopt(fd);
	if (!of)
		return pass(fd, request, argument);
	if (!argument || (request == set_user_memory_region2 && !of->region2))
		return device::forward(fd, request, argument);

	const bool locked = !self.held.none();
	bool first = false;
	std::uint64_t deadline = 0;
	int err = 0;
	{
		use it(*of);

		/* Both structs begin alike; guest_memfd comes with a flag that is passed on */
		const auto &call = *static_cast<const kvm_userspace_memory_region *>(argument);

		err = of->changes->set_region(of->kernel, call, locked, [&] {
			return device::forward(fd, request, argument) < 0 ? errno : 0;
		});
		deadline = of->changes->deadline();
		if (deadline) {
			const auto index = of - table.data();

			first = deadline != of->deadline.load();
			self.number[static_cast<std::size_t>(index)] = of->changes->number();
			self.collected |= 1ULL << index;
		}
	}
	if (first)
		keeper.arm(deadline);
	if (!err)
		return 0;
	errno = err;
	return -1;
}

/** An ioctl of a VM that has changes pending, before it is made. */
void before_vm_ioctl(vm &of, unsigned long request, void *argument)
{
	if (std::ranges::find(indifferent, request) != indifferent.end())
		return;

	const inside busy;
	use it(of);

	if (request == KVM_GET_DIRTY_LOG &&
	    !of.changes->log_needs_commit(static_cast<const kvm_dirty_log *>(argument)->slot))
		return;
	if (request == KVM_CLEAR_DIRTY_LOG &&
	    !of.changes->log_needs_commit(static_cast<const kvm_clear_dirty_log *>(argument)->slot))
		return;
	it.commit(moment::ioctl);
}

/** Does something with each VM that has changes pending. */
template <typename Action>
void for_pending(Action &&action)
{
	if (self.inside.load(std::memory_order_relaxed))
		return;
	for (unsigned i = 0; i < table_end.load(std::memory_order_acquire); i++) {
		if (!table[i].deadline.load())
			continue;

		const inside busy;
		use it(table[i]);

		action(table[i], it);
	}
}

void fork_prepare()
{
	leaves(moment::block);
}

/** The child has no VM: not this memory's (EIO), and its copies of our state may be torn. */
void fork_child()
{
	for (int fd = 0; fd < max_fds; fd++) {
		if (kind_of(fd) == FD_OWN)
			device::close(fd);
		if (kind_of(fd) != FD_UNKNOWN)
			set_kind(fd, FD_UNKNOWN);
	}
	for (vm &one : table) {
		if (one.changes)
			raw_syscall(SYS_munmap, arg(one.changes), sizeof(vm_collector));
		one.changes = nullptr;
		one.open = false;
		one.deadline.store(0);
		one.lock.abandon();
	}
	table_end.store(0);
	table_lock.abandon();
	keeper.abandon();
	self.collected = 0;
	owner.store(raw_syscall(SYS_getpid), std::memory_order_relaxed);
}

/** Finds the launcher's counters; without them the library works all the same. */
void share_statistics()
{
	const char *path = std::getenv(statistics_variable);

	if (!path)
		return;

	const long fd = raw_syscall(SYS_openat, AT_FDCWD, arg(path), O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return;

	const long address = raw_syscall(SYS_mmap, 0, sizeof(statistics), PROT_READ | PROT_WRITE,
					 MAP_SHARED, fd, 0);

	raw_syscall(SYS_close, fd);
	if (!is_error(address))
		shared.store(reinterpret_cast<statistics *>(address));
}

[[gnu::constructor]] void load()
{
	owner.store(raw_syscall(SYS_getpid), std::memory_order_relaxed);
	share_statistics();
	count(counters().processes);
	pthread_atfork(fork_prepare, nullptr, fork_child);
}

} // namespace

void commit_own(moment why)
{
	if (self.inside.load(std::memory_order_relaxed))
		return;

	const inside busy;

	for (std::uint64_t left = self.collected; left; left &= left - 1) {
		const auto index = static_cast<std::size_t>(std::countr_zero(left));

		/* Another batch than the one this thread had a part in is not its business */
		if (table[index].number.load() != self.number[index])
			continue;

		use it(table[index]);

		if (table[index].changes->number() == self.number[index])
			it.commit(why);
	}
	self.collected = 0;
}

void memory_changes(const volatile void *address, std::size_t length)
{
	for_pending([=](vm &one, use &it) {
		if (one.changes->uses(static_cast<std::uint64_t>(arg(address)), length))
			it.commit(moment::memory);
	});
}

void any_memory_changes()
{
	for_pending([](vm &, use &it) { it.commit(moment::memory); });
}

int kvm_ioctl(int fd, unsigned long request, void *argument)
{
	/* The kernel looks at 32 bits; QEMU's int makes 64 of them with the sign */
	request &= 0xffffffff;
	if (_IOC_TYPE(request) != KVMIO || self.inside.load(std::memory_order_relaxed))
		return device::forward(fd, request, argument);

	switch (request) {
	case KVM_RUN:
		leaves(moment::run);
		break;
	case KVM_CREATE_VM: {
		const int made = device::forward(fd, request, argument);

		if (made >= 0)
			vm_created(made);
		return made;
	}
	case KVM_SET_USER_MEMORY_REGION:
	case set_user_memory_region2:
		return set_region(fd, request, argument);
	case KVM_CHECK_EXTENSION:
		break;
	default:
		if (vm *of = vm_of(fd); !of)
			/* A vCPU's, say: it may read guest memory */
			leaves(moment::ioctl);
		else if (of->deadline.load())
			before_vm_ioctl(*of, request, argument);
	}
	return device::forward(fd, request, argument);
}

bool closes(int fd)
{
	const fd_kind kind = kind_of(fd);

	if (kind == FD_UNKNOWN || self.inside.load(std::memory_order_relaxed) || !in_owner())
		return true;
	if (kind == FD_OWN)
		return false;

	const inside busy;
	const std::lock_guard guard(table_lock);

	if (vm *of = vm_of(fd))
		drop_descriptor(*of, fd);
	else
		set_kind(fd, FD_UNKNOWN);
	return true;
}

void replaces(int fd)
{
	if (closes(fd))
		return;

	const inside busy;
	const std::lock_guard guard(table_lock);

	for (vm &one : table) {
		if (!one.open || one.kernel.memslot_fd != fd)
			continue;

		const int elsewhere = device::relocate(fd);
		use it(one);

		/* Without room the next change finds no device, and goes to KVM as it is */
		set_kind(fd, FD_UNKNOWN);
		set_kind(elsewhere, FD_OWN);
		one.kernel.memslot_fd = elsewhere;
	}
}

void copied(int from, int to)
{
	const fd_kind kind = kind_of(from);

	if (from == to || kind == FD_UNKNOWN || kind == FD_OWN || !in_owner())
		return;

	const inside busy;
	const std::lock_guard guard(table_lock);

	if (vm *of = vm_of(from)) {
		use it(*of);
		of->descriptors++;
	}
	set_kind(to, kind);
}

int next_own(int from)
{
	for (int fd = std::max(from, 0); fd < max_fds; fd++) {
		if (kind_of(fd) == FD_OWN)
			return fd;
	}
	return -1;
}

int next_vm(int from)
{
	for (int fd = std::max(from, 0); fd < max_fds; fd++) {
		if (is_vm(kind_of(fd)) || kind_of(fd) == FD_PASSED)
			return fd;
	}
	return -1;
}

} // namespace memslot_run
