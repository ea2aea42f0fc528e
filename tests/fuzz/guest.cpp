// SPDX-License-Identifier: GPL-2.0
#include "guest.hpp"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <system_error>
#include <unistd.h>

/*
 * 32-bit protected mode, flat segments: reads, writes and calls into each of %ecx pages from %esi
 * on, for ever.  Where calls go, there is a RET if the memory is one of the pool's.
 */
asm(R"(
	.pushsection .rodata
	.code32
	.globl fuzz_guest_start, fuzz_guest_end
fuzz_guest_start:
	push	%edi
2:	mov	%esi, %ebp
	mov	%ecx, %edx
1:	mov	(%ebp), %eax
	incl	8(%ebp)
	lea	16(%ebp), %ebx
	call	*%ebx
	add	$4096, %ebp
	dec	%edx
	jnz	1b
	dec	%edi
	jnz	2b
	pop	%edi
	hlt
	jmp	fuzz_guest_start
fuzz_guest_end:
	.code64
	.popsection
)");

extern "C" const std::byte fuzz_guest_start[], fuzz_guest_end[];

namespace fuzz {

namespace {

constexpr std::uint32_t guest_slot = 500;
constexpr std::uint64_t guest_size = 16 * page_size;
constexpr std::uint64_t code_at = 0x1000;
constexpr std::uint64_t stacks_at = 0x8000;
constexpr int kick_signal = SIGUSR1;

void check(bool ok, const char *what)
{
	if (!ok)
		throw std::system_error(errno, std::generic_category(), what);
}

kvm_segment flat(std::uint8_t type, std::uint16_t selector)
{
	kvm_segment segment{};

	segment.limit = 0xffffffff;
	segment.selector = selector;
	segment.type = type;
	segment.present = 1;
	segment.db = 1;
	segment.s = 1;
	segment.g = 1;
	return segment;
}

void on_kick(int)
{
}

} // namespace

guest::guest(const arena &arena, chance &chance, tally &tally)
{
	struct sigaction action {};
	action.sa_handler = on_kick;
	check(!sigaction(kick_signal, &action, nullptr), "sigaction");

	const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	check(kvm >= 0, "/dev/kvm");
	fd_ = ioctl(kvm, KVM_CREATE_VM, 0);
	check(fd_ >= 0, "KVM_CREATE_VM");
	run_size_ = static_cast<std::size_t>(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	close(kvm);
	check(!ioctl(fd_, KVM_SET_TSS_ADDR, 0xfffbd000UL), "KVM_SET_TSS_ADDR");

	void *memory = mmap(nullptr, guest_size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(memory != MAP_FAILED, "mmap");
	memory_ = static_cast<std::byte *>(memory);
	std::memcpy(memory_ + code_at, fuzz_guest_start,
		    static_cast<std::size_t>(fuzz_guest_end - fuzz_guest_start));
	check(set_own_slots(), "KVM_SET_USER_MEMORY_REGION");

	for (std::uint64_t page = 0; page < arena::pool_pages; page += 1 + chance.below(3))
		*reinterpret_cast<std::uint8_t *>(arena.pool(page) + 16) = 0xc3; /* RET */

	if (chance.percent(30)) {
		kvm_enable_cap capability{};
		capability.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
		capability.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
				     (chance.percent(50) ? KVM_DIRTY_LOG_INITIALLY_SET : 0);
		check(!ioctl(fd_, KVM_ENABLE_CAP, &capability), "KVM_ENABLE_CAP");
	} else if (chance.percent(10)) {
		kvm_enable_cap capability{};
		capability.cap = KVM_CAP_DIRTY_LOG_RING;
		capability.args[0] = 16 * page_size;
		check(!ioctl(fd_, KVM_ENABLE_CAP, &capability), "KVM_CAP_DIRTY_LOG_RING");
	}

	const auto vcpus = static_cast<unsigned int>(chance.below(most_vcpus));
	for (; vcpus_ < vcpus; vcpus_++) {
		const int fd = ioctl(fd_, KVM_CREATE_VCPU, vcpus_);

		tally.note(call::create_vcpu, fd < 0 ? -errno : 0);
		check(fd >= 0, "KVM_CREATE_VCPU");
		vcpu_[vcpus_] = fd;
		run_[vcpus_] = mmap(nullptr, run_size_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		check(run_[vcpus_] != MAP_FAILED, "mmap of a vCPU");
	}
	for (unsigned int i = 0; i < vcpus_; i++)
		threads_.emplace_back(
			[this, i, seed = chance.bits()] { run(i, fuzz::chance(seed)); });
}

guest::~guest()
{
	stop();
	for (unsigned int i = 0; i < vcpus_; i++) {
		munmap(run_[i], run_size_);
		close(vcpu_[i]);
	}
	close_vm();
	munmap(memory_, guest_size);
}

void guest::close_vm()
{
	if (const int fd = fd_.exchange(-1); fd >= 0)
		close(fd);
}

void guest::stop()
{
	stopping_ = true;
	for (unsigned int i = 0; i < threads_.size(); i++) {
		auto *run = static_cast<kvm_run *>(run_[i]);

		std::atomic_ref(run->immediate_exit).store(1);
		pthread_kill(threads_[i].native_handle(), kick_signal);
	}
	threads_.clear();
}

/* The memory that the vCPUs need to run at all, in both address spaces */
bool guest::set_own_slots() const
{
	kvm_userspace_memory_region region{};

	region.slot = guest_slot;
	region.memory_size = guest_size;
	region.userspace_addr = reinterpret_cast<std::uint64_t>(memory_);
	if (ioctl(fd_, KVM_SET_USER_MEMORY_REGION, &region))
		return false;
	region.slot |= 1U << 16;
	return !ioctl(fd_, KVM_SET_USER_MEMORY_REGION, &region);
}

bool guest::reset(unsigned int i, chance &chance) const
{
	kvm_sregs sregs{};
	kvm_regs regs{};
	kvm_mp_state state{.mp_state = KVM_MP_STATE_RUNNABLE};

	/* A commit may have replaced all slots. */
	set_own_slots();
	if (ioctl(vcpu_[i], KVM_GET_SREGS, &sregs))
		return false;
	sregs.cs = flat(11, 0x08);
	sregs.ds = sregs.es = sregs.ss = flat(3, 0x10);
	sregs.cr0 |= 1;
	regs.rip = code_at;
	regs.rsp = stacks_at + (i + 1ULL) * 0x400;
	regs.rsi = window + chance.below(window_pages) * page_size;
	regs.rcx = 1 + chance.below(32);
	regs.rdi = 1 + chance.below(500);
	regs.rflags = 2;
	ioctl(vcpu_[i], KVM_SET_MP_STATE, &state);
	if (ioctl(vcpu_[i], KVM_SET_SREGS, &sregs) || ioctl(vcpu_[i], KVM_SET_REGS, &regs))
		return false;
	if (i % 2) { /* the other address space */
		kvm_vcpu_events events{};

		if (ioctl(vcpu_[i], KVM_GET_VCPU_EVENTS, &events))
			return false;
		events.flags |= KVM_VCPUEVENT_VALID_SMM;
		events.smi.smm = 1;
		ioctl(vcpu_[i], KVM_SET_VCPU_EVENTS, &events);
	}
	return true;
}

void guest::run(unsigned int i, chance chance)
{
	using namespace std::chrono_literals;
	auto *run = static_cast<kvm_run *>(run_[i]);
	bool alive = false;

	while (!stopping_) {
		if (!alive)
			alive = reset(i, chance);
		if (ioctl(vcpu_[i], KVM_RUN, 0)) {
			if (errno != EINTR && errno != EAGAIN)
				alive = false;
		} else if (run->exit_reason == KVM_EXIT_MMIO) {
			/* a hole: on with whatever was read, but not for ever */
			alive = chance.percent(90);
		} else if (run->exit_reason == KVM_EXIT_HLT) {
			/* the callers want a processor, too */
			std::this_thread::sleep_for(std::chrono::milliseconds(chance.below(5)));
		} else {
			alive = false;
		}
		if (!alive)
			std::this_thread::sleep_for(2ms);
	}
}

} // namespace fuzz
