// SPDX-License-Identifier: GPL-2.0
/*
 * VMMs of a few lines, each of which does with its VM what a VMM may do, and says what came of it.
 * Under memslot-run it must say the same as without.
 *
 * What must not be seen by memslot-run is done by raw system calls.
 */
#include "raw_syscall.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <functional>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <map>
#include <pthread.h>
#include <span>
#include <spawn.h>
#include <string>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

using memslot_run::arg;
using memslot_run::raw_syscall;

namespace {

constexpr std::uint64_t page = 0x1000;

/* Guest addresses: code, stack and flags; the page that the guest works on */
constexpr std::uint64_t code_at = 0x1000;
constexpr std::uint64_t handler_at = 0x1100;
constexpr std::uint64_t stop_at = 0x800;
constexpr std::uint64_t low_size = 0x10000;
constexpr std::uint64_t work_at = 0x40000;

[[noreturn]] void die(const char *what)
{
	std::perror(what);
	std::exit(2);
}

int must(int result, const char *what)
{
	if (result < 0)
		die(what);
	return result;
}

double milliseconds()
{
	timespec time{};

	clock_gettime(CLOCK_MONOTONIC, &time);
	return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}

/** Passes time without a call that anybody could see. */
void spin(double how_long)
{
	const double end = milliseconds() + how_long;

	while (milliseconds() < end) {
	}
}

std::uint8_t *memory(std::uint64_t size)
{
	void *at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		die("mmap");
	return static_cast<std::uint8_t *>(at);
}

kvm_userspace_memory_region region(unsigned slot, std::uint64_t gpa, std::uint64_t size,
				   const void *at, std::uint32_t flags = 0)
{
	return {slot, flags, gpa, size, reinterpret_cast<std::uintptr_t>(at)};
}

int set(int vm, kvm_userspace_memory_region one)
{
	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &one);
}

/** True if KVM has a slot at the address, asked past whoever listens. */
bool kvm_has(int vm, std::uint64_t gpa)
{
	static const std::uint8_t *const other = memory(page);
	auto one = region(500, gpa, page, other);

	if (raw_syscall(SYS_ioctl, vm, KVM_SET_USER_MEMORY_REGION, arg(&one)) == -EEXIST)
		return true;
	one.memory_size = 0;
	raw_syscall(SYS_ioctl, vm, KVM_SET_USER_MEMORY_REGION, arg(&one));
	return false;
}

/** The same, for as long as it takes. */
bool kvm_has_in_the_end(int vm, std::uint64_t gpa, bool wanted)
{
	for (int i = 0; i < 1000 && kvm_has(vm, gpa) != wanted; i++)
		spin(1);
	return kvm_has(vm, gpa);
}

/** A guest in real mode with one vCPU, whose VMM emulates memory where KVM finds none. */
class guest {
public:
	guest()
	    : kvm_(must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm")),
	      vm(must(ioctl(kvm_, KVM_CREATE_VM, 0), "KVM_CREATE_VM")), low(memory(low_size)),
	      work(memory(page))
	{
		must(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR");
		must(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
		must(set(vm, region(0, 0, low_size, low)), "slot 0");
		vcpu_ = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
		run_ = static_cast<kvm_run *>(mmap(
			nullptr, static_cast<std::size_t>(ioctl(kvm_, KVM_GET_VCPU_MMAP_SIZE, 0)),
			PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_, 0));

		kvm_sregs special{};
		kvm_regs general{};

		must(ioctl(vcpu_, KVM_GET_SREGS, &special), "KVM_GET_SREGS");
		special.cs.base = 0;
		special.cs.selector = 0;
		must(ioctl(vcpu_, KVM_SET_SREGS, &special), "KVM_SET_SREGS");
		general.rip = code_at;
		general.rsp = 0x8000;
		general.rflags = 2;
		must(ioctl(vcpu_, KVM_SET_REGS, &general), "KVM_SET_REGS");
	}

	/** Lets its local APIC take interrupts. */
	void enable_apic() const
	{
		constexpr std::size_t spurious_vector = 0xf0;
		constexpr std::uint32_t enabled = 0x1ff;
		kvm_lapic_state lapic{};

		must(ioctl(vcpu_, KVM_GET_LAPIC, &lapic), "KVM_GET_LAPIC");
		std::memcpy(lapic.regs + spurious_vector, &enabled, sizeof(enabled));
		must(ioctl(vcpu_, KVM_SET_LAPIC, &lapic), "KVM_SET_LAPIC");
	}

	/** Runs the code until it does output; nothing else is to be wrong with it. */
	void start(std::span<const std::uint8_t> code)
	{
		std::memcpy(low + code_at, code.data(), code.size());
		thread_ = std::thread([this] {
			while (!step()) {
			}
		});
		/* It has begun, or it would wait for the first commit */
		while (!running)
			spin(1);
		spin(50);
	}

	/** Waits until it has. */
	void join()
	{
		thread_.join();
	}

	[[nodiscard]] std::uint32_t ecx() const
	{
		kvm_regs general{};

		must(ioctl(vcpu_, KVM_GET_REGS, &general), "KVM_GET_REGS");
		return static_cast<std::uint32_t>(general.rcx);
	}

	int kvm_;
	int vm;
	std::uint8_t *low;
	/** what the VMM believes to be the page that the guest works on */
	std::uint8_t *work;
	pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;
	std::atomic<bool> running = false;
	std::atomic<int> holes = 0;
	std::atomic<int> output = -1;

private:
	/** True if the guest has done output. */
	bool step()
	{
		running = true;
		if (ioctl(vcpu_, KVM_RUN, 0) < 0) {
			if (errno != EINTR)
				die("KVM_RUN");
			return false;
		}
		switch (run_->exit_reason) {
		case KVM_EXIT_IO:
			output = *(reinterpret_cast<std::uint8_t *>(run_) + run_->io.data_offset);
			return true;
		case KVM_EXIT_MMIO:
			emulate();
			return false;
		}
		std::printf("exit reason %u\n", run_->exit_reason);
		std::exit(2);
	}

	void emulate()
	{
		if (run_->mmio.phys_addr - work_at >= page)
			return;
		holes++;
		pthread_mutex_lock(&big);
		std::uint8_t *const at = work + (run_->mmio.phys_addr - work_at);

		if (run_->mmio.is_write)
			std::memcpy(at, run_->mmio.data, run_->mmio.len);
		else
			std::memcpy(run_->mmio.data, at, run_->mmio.len);
		pthread_mutex_unlock(&big);
	}

	int vcpu_;
	kvm_run *run_;
	std::thread thread_;
};

/* ds = 0x4000; loop: counter at ds:0 and ecx up by one; until es:[stop_at] is set; out */
constexpr std::array<std::uint8_t, 27> counting{
	0xb8, 0x00, 0x40, 0x8e, 0xd8, 0x31, 0xc0, 0x8e, 0xc0, 0x66, 0xff, 0x06, 0x00, 0x00,
	0x66, 0x41, 0x26, 0x80, 0x3e, 0x00, 0x08, 0x00, 0x74, 0xf1, 0xe6, 0x10, 0xf4};

/* ds = 0x4000; out of what is at ds:0 */
constexpr std::array<std::uint8_t, 11> reading{0xb8, 0x00, 0x40, 0x8e, 0xd8, 0xa0,
					       0x00, 0x00, 0xe6, 0x10, 0xf4};

std::uint32_t counter(const std::uint8_t *at)
{
	std::uint32_t value = 0;

	std::memcpy(&value, at, sizeof(value));
	return value;
}

/** Ends a guest that counts, and says how much of what it has counted is not in its memory. */
void tell_lost_increments(guest &g)
{
	g.low[stop_at] = 1;
	g.join();
	std::printf("increments lost: %u\n", g.ecx() - counter(g.work));
}

/** Moves a guest's memory with KVM alone: delete, copy, create elsewhere. */
int move()
{
	guest g;
	std::uint8_t *other = memory(page);

	must(set(g.vm, region(1, work_at, page, g.work)), "slot 1");
	g.start(counting);
	for (int i = 0; i < 20; i++) {
		pthread_mutex_lock(&g.big);
		must(set(g.vm, region(1, 0, 0, nullptr)), "delete");
		std::memcpy(other, g.work, page);
		spin(2);
		must(set(g.vm, region(1, work_at, page, other)), "create");
		std::swap(g.work, other);
		pthread_mutex_unlock(&g.big);
		spin(10);
	}
	tell_lost_increments(g);
	return 0;
}

/** Copies memory while its changes are logged. */
int log()
{
	guest g;
	std::uint64_t bitmap = 0;
	kvm_dirty_log get{};

	get.slot = 1;
	get.dirty_bitmap = &bitmap;
	must(set(g.vm, region(1, work_at, page, g.work)), "slot 1");
	g.start(counting);
	pthread_mutex_lock(&g.big);
	must(set(g.vm, region(1, work_at, page, g.work, KVM_MEM_LOG_DIRTY_PAGES)), "log");

	const std::uint32_t copied = counter(g.work);

	spin(20);
	g.low[stop_at] = 1;
	while (g.output < 0)
		spin(1);
	const bool written = counter(g.work) != copied;

	must(ioctl(g.vm, KVM_GET_DIRTY_LOG, &get), "KVM_GET_DIRTY_LOG");
	pthread_mutex_unlock(&g.big);
	g.join();
	std::printf("written: %d, logged: %d\n", written, bitmap != 0);

	/* A slot that is gone has no log; one that is back has a new one */
	pthread_mutex_lock(&g.big);
	must(set(g.vm, region(1, 0, 0, nullptr)), "delete");
	const int gone = ioctl(g.vm, KVM_GET_DIRTY_LOG, &get) < 0 ? errno : 0;

	must(set(g.vm, region(1, work_at, page, g.work, KVM_MEM_LOG_DIRTY_PAGES)), "create");
	const int back = ioctl(g.vm, KVM_GET_DIRTY_LOG, &get) < 0 ? errno : 0;

	pthread_mutex_unlock(&g.big);
	std::printf("gone: %s, back: %s\n", strerrorname_np(gone),
		    back ? strerrorname_np(back) : "0");
	return 0;
}

/** Adds memory and tells the guest by an interrupt, all under a mutex. */
int interrupt()
{
	/* sti; hlt, again and again */
	constexpr std::array<std::uint8_t, 4> waiting{0xfb, 0xf4, 0xeb, 0xfc};
	constexpr unsigned vector = 0x30;
	guest g;
	kvm_msi msi{};

	g.enable_apic();
	g.low[4 * vector + 1] = handler_at >> 8;
	std::memcpy(g.low + handler_at, reading.data(), reading.size());
	g.start(waiting);
	g.work[0] = 0x42;
	msi.address_lo = 0xfee00000;
	msi.data = vector;
	pthread_mutex_lock(&g.big);
	must(set(g.vm, region(1, work_at, page, g.work)), "slot 1");
	/* KVM says how many took it */
	if (must(ioctl(g.vm, KVM_SIGNAL_MSI, &msi), "KVM_SIGNAL_MSI") == 0) {
		std::puts("no interrupt");
		return 2;
	}
	spin(50);
	pthread_mutex_unlock(&g.big);
	g.join();
	std::printf("holes: %d, read: %#x\n", g.holes.load(), static_cast<unsigned>(g.output));
	return 0;
}

/** Serves a page fault of its guest while another thread changes slots. */
int userfault()
{
	guest g;
	std::atomic<bool> faulted = false;
	const int fd = must(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC)), "userfaultfd");
	uffdio_api api{UFFD_API, 0, 0};
	uffdio_register watched{};

	must(ioctl(fd, UFFDIO_API, &api), "UFFDIO_API");
	watched.range = {reinterpret_cast<std::uintptr_t>(g.work), page};
	watched.mode = UFFDIO_REGISTER_MODE_MISSING;
	must(ioctl(fd, UFFDIO_REGISTER, &watched), "UFFDIO_REGISTER");
	must(set(g.vm, region(1, work_at, page, g.work)), "slot 1");

	std::thread serving([&] {
		uffd_msg message{};
		uffdio_copy copy{};

		if (read(fd, &message, sizeof(message)) != sizeof(message))
			die("userfaultfd");
		faulted = true;
		/* The other one is in its change by then */
		spin(300);

		std::uint8_t *const scratch = memory(page);
		std::uint8_t *const source = memory(page);
		const int file = memfd_create("scratch", 0);

		source[0] = 0x77;
		mprotect(scratch, page, PROT_READ);
		madvise(scratch, page, MADV_DONTNEED);
		munmap(scratch, page);
		must(ftruncate(file, page), "ftruncate");
		fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, page);
		close(file);
		close(must(dup(g.vm), "dup"));
		copy.dst = message.arg.pagefault.address & ~(page - 1);
		copy.src = reinterpret_cast<std::uintptr_t>(source);
		copy.len = page;
		must(ioctl(fd, UFFDIO_COPY, &copy), "UFFDIO_COPY");
	});

	g.start(reading);
	while (!faulted)
		spin(1);
	pthread_mutex_lock(&g.big);
	must(set(g.vm, region(2, 0x80000, page, memory(page))), "slot 2");
	pthread_mutex_unlock(&g.big);
	g.join();
	serving.join();
	std::printf("read: %#x\n", static_cast<unsigned>(g.output));
	return 0;
}

/** A VM without vCPUs: its slot comes, and goes. */
int slots(const char *who)
{
	const int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	const int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	const std::uint8_t *const at = memory(page);
	pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;

	pthread_mutex_lock(&big);
	must(set(vm, region(0, 0, page, at)), "create");
	const bool created = kvm_has(vm, 0);

	must(set(vm, region(0, 0, 0, nullptr)), "delete");
	pthread_mutex_unlock(&big);
	std::printf("%s: created: %d, still there: %d\n", who, created,
		    kvm_has_in_the_end(vm, 0, false));
	std::fflush(stdout);
	close(vm);
	close(kvm);
	return 0;
}

/** This program once more, as a VMM of its own. */
pid_t spawn()
{
	std::array<char, 4> name{"vmm"};
	std::array<char, 6> what{"child"};
	std::array<char *, 3> arguments{name.data(), what.data(), nullptr};
	pid_t pid = -1;

	posix_spawn(&pid, "/proc/self/exe", nullptr, nullptr, arguments.data(), environ);
	return pid;
}

/** The same by a child that runs in our memory for a while, and closes what it has no use for. */
pid_t run_after_vfork(int unused)
{
	/* NOLINTBEGIN(*vfork,*Vfork): that is what it is about */
	const pid_t pid = vfork();

	if (pid == 0) {
		close(unused);
		execl("/proc/self/exe", "vmm", "child", nullptr);
		_exit(2);
	}
	/* NOLINTEND(*vfork,*Vfork) */
	return pid;
}

/** A VM of the parent, one of a child made in some way, and that of the parent again. */
int child(const std::string &how)
{
	const int kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm");
	const int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	guest running;

	/* With vCPUs that have run, and a transaction that is open */
	must(set(running.vm, region(1, work_at, page, running.work)), "slot 1");
	running.start(counting);
	must(set(vm, region(0, 0, page, memory(page))), "create");
	slots("parent");

	pid_t pid = -1;

	if (how == "fork")
		pid = fork();
	else if (how == "_Fork")
		pid = _Fork();
	else if (how == "clone")
		pid = static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
	else if (how == "vfork")
		pid = run_after_vfork(vm);
	else if (how == "spawn")
		pid = spawn();
	else if (how == "raw")
		pid = static_cast<pid_t>(raw_syscall(SYS_clone, SIGCHLD));
	if (pid == 0) {
		slots("child");
		/* The parent's VM is not the child's */
		const int denied = set(vm, region(0, 0, 0, nullptr)) < 0 ? errno : 0;

		std::printf("child: %s\n", strerrorname_np(denied));
		std::fflush(stdout);
		_exit(0);
	}
	must(pid, "child");
	int status = 0;

	must(waitpid(pid, &status, 0), "waitpid");
	must(set(vm, region(0, 0, 0, nullptr)), "delete");
	std::printf("parent: still there: %d, child: %d\n", kvm_has_in_the_end(vm, 0, false),
		    status);
	tell_lost_increments(running);
	return 0;
}

pthread_mutex_t handlers_lock = PTHREAD_MUTEX_INITIALIZER;

/** Fork handlers that initialise a mutex anew instead of releasing it. */
int atfork()
{
	pthread_atfork([] { pthread_mutex_lock(&handlers_lock); },
		       [] { pthread_mutex_unlock(&handlers_lock); },
		       [] { pthread_mutex_init(&handlers_lock, nullptr); });
	return child("fork");
}

/** A process that goes into the background, with a VM before and one afterwards. */
int daemonize()
{
	slots("before");

	std::array<int, 2> ends{};
	char done = 0;

	must(pipe(ends.data()), "pipe");
	if (must(fork(), "fork")) {
		close(ends[1]);
		return read(ends[0], &done, 1) == 1 ? 0 : 2;
	}
	setsid();
	if (must(fork(), "fork"))
		_exit(0);
	slots("afterwards");
	return write(ends[1], "", 1) == 1 ? 0 : 2;
}

/** No descriptor is left but those that the VM needs. */
int descriptors()
{
	const rlimit few{32, 32};

	setrlimit(RLIMIT_NOFILE, &few);
	while (dup(0) >= 0) {
	}
	close(30);
	close(31);
	return slots("few");
}

/** A VM's descriptor on its way through a socket. */
int sockets()
{
	const int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	const int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	std::array<int, 2> ends{};
	char text = 'x';
	iovec data{&text, 1};
	alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> space{};
	msghdr message{};
	int received = -1;

	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends.data()), "socketpair");
	message.msg_iov = &data;
	message.msg_iovlen = 1;
	message.msg_control = space.data();
	message.msg_controllen = space.size();

	cmsghdr *const header = CMSG_FIRSTHDR(&message);

	if (!header)
		die("no room for a descriptor");
	*header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
	std::memcpy(CMSG_DATA(header), &vm, sizeof(vm));
	must(set(vm, region(0, 0, page, memory(page))), "create");
	must(static_cast<int>(sendmsg(ends[0], &message, 0)), "sendmsg");
	must(static_cast<int>(recvmsg(ends[1], &message, 0)), "recvmsg");
	const cmsghdr *const arrived = CMSG_FIRSTHDR(&message);

	if (!arrived)
		die("no descriptor arrived");
	std::memcpy(&received, CMSG_DATA(arrived), sizeof(received));
	must(set(received, region(0, 0, 0, nullptr)), "delete");
	std::printf("still there: %d\n", kvm_has_in_the_end(vm, 0, false));
	close(vm);
	must(set(received, region(1, 0, page, memory(page))), "create");
	std::printf("created: %d\n", kvm_has_in_the_end(received, 0, true));
	return 0;
}

/** Somebody closes what he does not know, in a way that nobody sees. */
int device_gone()
{
	guest g;

	must(set(g.vm, region(1, work_at, page, g.work)), "slot 1");
	g.start(counting);
	raw_syscall(SYS_close_range, 100, ~0U, 0);
	must(set(g.vm, region(2, 0x80000, page, memory(page))), "create");
	must(set(g.vm, region(2, 0, 0, nullptr)), "delete");
	std::printf("still there: %d\n", kvm_has_in_the_end(g.vm, 0x80000, false));
	tell_lost_increments(g);
	return 0;
}

const std::map<std::string, std::function<int()>> vmms{
	{"move", move},
	{"log", log},
	{"interrupt", interrupt},
	{"userfault", userfault},
	{"fork", [] { return child("fork"); }},
	{"_Fork", [] { return child("_Fork"); }},
	{"clone", [] { return child("clone"); }},
	{"vfork", [] { return child("vfork"); }},
	{"spawn", [] { return child("spawn"); }},
	{"child", [] { return slots("child"); }},
	{"raw", [] { return child("raw"); }},
	{"atfork", atfork},
	{"daemonize", daemonize},
	{"descriptors", descriptors},
	{"sockets", sockets},
	{"device-gone", device_gone},
};

} // namespace

int main(int argc, char **argv)
{
	const auto found = argc == 2 ? vmms.find(argv[1]) : vmms.end();

	if (found == vmms.end()) {
		for (const auto &[name, vmm] : vmms)
			std::puts(name.c_str());
		return 2;
	}
	setvbuf(stdout, nullptr, _IOLBF, 0);
	return found->second();
}
