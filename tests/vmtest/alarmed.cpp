// SPDX-License-Identifier: GPL-2.0
/*
 * How KVM_RUN of a real-mode guest that spins ends, when an alarm is set for 100 milliseconds:
 *
 *	alarmed enabled|disabled	the guest's interrupts
 *	alarmed controller		interrupts enabled, and their controller is in the kernel
 *
 * Prints errno (0 if KVM_RUN returned 0), KVM's exit reason, and the milliseconds that it took.
 * The processors of an emulator need not do what Intel's do: vmtest/bochs.py says what follows.
 */
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdexcept>
#include <string>
#include <string_view>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>

namespace {

constexpr std::size_t memory_size = 0x4000;
constexpr unsigned long long tss_address = 0xfffbd000;
constexpr unsigned long long code_address = 0x1000;
constexpr unsigned char spin[] = {0xeb, 0xfe}; /* jmp to itself */
constexpr unsigned long long rflags_fixed = 1 << 1;
constexpr unsigned long long rflags_if = 1 << 9;

int checked(int result, const char *what)
{
	if (result < 0)
		throw std::runtime_error(std::string(what) + ": " + std::strerror(errno));
	return result;
}

void *map(std::size_t size, int fd)
{
	const int flags = fd < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED;
	void *memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (memory == MAP_FAILED)
		throw std::runtime_error("mmap");
	return memory;
}

/* Blocks a signal of this thread, but for the time that it is in KVM_RUN. */
void let_through_by_kvm_run_only(int vcpu, int signal)
{
	/* struct kvm_signal_mask with the kernel's set of 64 signals, none of which is blocked */
	const struct {
		std::uint32_t len = 8;
		std::array<unsigned char, 8> set{};
	} mask;
	sigset_t blocked;

	/* The header's number has the size of that struct in it, which in C++ is another one */
	checked(ioctl(vcpu, _IOW(KVMIO, 0x8b, std::uint32_t), &mask), "KVM_SET_SIGNAL_MASK");
	sigemptyset(&blocked);
	sigaddset(&blocked, signal);
	checked(sigprocmask(SIG_BLOCK, &blocked, nullptr), "sigprocmask");
}

void run(bool interrupts, bool controller)
{
	const int kvm = checked(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	const int vm = checked(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");

	checked(ioctl(vm, KVM_SET_TSS_ADDR, tss_address), "KVM_SET_TSS_ADDR");
	if (controller)
		checked(ioctl(vm, KVM_CREATE_IRQCHIP), "KVM_CREATE_IRQCHIP");
	auto *memory = static_cast<unsigned char *>(map(memory_size, -1));
	kvm_userspace_memory_region region{};

	region.memory_size = memory_size;
	region.userspace_addr = reinterpret_cast<std::uintptr_t>(memory);
	checked(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	std::memcpy(memory + code_address, spin, sizeof(spin));

	const int vcpu = checked(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	const int size = checked(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	const auto *shared = static_cast<kvm_run *>(map(static_cast<std::size_t>(size), vcpu));
	kvm_sregs sregs{};

	checked(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	checked(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	kvm_regs regs{};

	regs.rip = code_address;
	regs.rflags = rflags_fixed | (interrupts ? rflags_if : 0);
	checked(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");

	struct sigaction action {};

	action.sa_handler = [](int) {};
	checked(sigaction(SIGALRM, &action, nullptr), "sigaction");
	/* Only KVM_RUN lets the signal through: on a busy machine it may come before that begins */
	let_through_by_kvm_run_only(vcpu, SIGALRM);
	itimerval timer{};

	timer.it_value.tv_usec = 100000;
	const auto started = std::chrono::steady_clock::now();
	checked(setitimer(ITIMER_REAL, &timer, nullptr), "setitimer");
	const int error = ioctl(vcpu, KVM_RUN, 0) ? errno : 0;
	const auto took = std::chrono::steady_clock::now() - started;

	std::printf("%d %u %lld\n", error, shared->exit_reason,
		    static_cast<long long>(
			    std::chrono::duration_cast<std::chrono::milliseconds>(took).count()));
}

} // namespace

int main(int argc, char **argv)
try {
	const std::string_view how = argc == 2 ? argv[1] : "";

	if (how != "enabled" && how != "disabled" && how != "controller") {
		std::fprintf(stderr, "usage: alarmed enabled|disabled|controller\n");
		return 2;
	}
	run(how != "disabled", how == "controller");
	return EXIT_SUCCESS;
} catch (const std::exception &why) {
	std::fprintf(stderr, "alarmed: %s\n", why.what());
	return EXIT_FAILURE;
}
