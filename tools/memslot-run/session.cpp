// SPDX-License-Identifier: GPL-2.0
#include "session.hpp"

#include "clock.hpp"
#include "copy.hpp"
#include "counters.hpp"
#include "device.hpp"
#include "rules.hpp"
#include "table.hpp"
#include "withdrawals.hpp"

#include <bit>
#include <cerrno>
#include <linux/kvm.h>
#include <sys/ioctl.h>

namespace memslot_run {

constinit thread_local thread self{};

std::atomic<bool> vcpus_run;

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

int pass(int fd, unsigned long request, void *argument)
{
	count(counters().passed);
	return device::forward(fd, request, argument);
}

int set_region(int fd, unsigned long request, void *argument)
{
	const inside busy;
	vm *of = vm_of(fd);

	if (!of && kind_of(fd) == FD_UNKNOWN && has_our_descriptors())
		of = adopt(fd);
	if (!of)
		return pass(fd, request, argument);
	if (!argument || (request == set_user_memory_region2 && !of->region2))
		return device::forward(fd, request, argument);

	bool first = false;
	std::uint64_t deadline = 0;
	int err = 0;
	{
		use it(*of);

		/* Both structs begin alike; guest_memfd comes with a flag that is passed on */
		const auto &call = *static_cast<const kvm_userspace_memory_region *>(argument);
		const caller by{
			.locked = !self.held.none(),
			.can_withdraw = vcpus_run.load(std::memory_order_relaxed) &&
					of->keeper.is_there(),
		};

		const std::uint64_t steps = of->changes->steps();

		err = of->changes->set_region(of->kernel, call, by, [&] {
			return device::forward(fd, request, argument) < 0 ? errno : 0;
		});
		deadline = of->changes->deadline();
		/* Another thread's transaction is not for this one to end */
		if (deadline && of->changes->steps() != steps) {
			const auto index = of - table.data();

			first = deadline != of->deadline.load();
			self.number[static_cast<std::size_t>(index)] = of->changes->number();
			self.collected |= 1ULL << index;
		}
	}
	if (first)
		of->keeper.arm(deadline);
	if (!err)
		return 0;
	errno = err;
	return -1;
}

/**
 * Waits until a transaction of another thread is over.
 *
 * Not for ever: that thread's commit may wait for a vCPU whose page fault this one is about to
 * serve.
 */
void await(const vm &of)
{
	const std::uint64_t number = of.number.load();
	const std::uint64_t until = now() + 2 * vm_collector::patience_locked;

	while (now() < until) {
		const std::uint32_t ended = withdrawn.ended();

		if (!of.deadline.load() || of.number.load() != number)
			break;
		withdrawn.wait(ended);
	}
}

/** Before a call of KVM that needs what was collected, for one VM or, without one, for all. */
void complete(const vm *only)
{
	leaves(moment::ioctl);
	for (unsigned i = 0; i < table_end.load(std::memory_order_acquire); i++) {
		if ((!only || only == &table[i]) && table[i].deadline.load())
			await(table[i]);
	}
}

/** True if KVM does not have the slot that an ioctl is about. */
bool is_collected(vm &of, const void *argument)
{
	if (!of.deadline.load())
		return false;

	const inside busy;
	const use it(of);

	/* Both structs begin with it */
	return of.changes->is_collected(*static_cast<const __u32 *>(argument));
}

/** KVM_RUN, as often as it fails because a vCPU has met memory that was withdrawn. */
int run_vcpu(int fd, unsigned long request, void *argument)
{
	leaves(moment::run);
	if (!vcpus_run.load(std::memory_order_relaxed))
		vcpus_run.store(true);
	for (;;) {
		const std::uint32_t ended = withdrawn.ended();
		const int result = device::forward(fd, request, argument);

		if (result >= 0 || errno != EFAULT || !withdrawn.any_since(ended))
			return result;
		count(counters().retries);
		withdrawn.wait(ended);
	}
}

} // namespace

void commit_own(moment why)
{
	if (self.inside.load(std::memory_order_relaxed))
		return;
	notice_copy();

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

int kvm_ioctl(int fd, unsigned long request, void *argument)
{
	/* The kernel looks at 32 bits; QEMU's int makes 64 of them with the sign */
	request &= 0xffffffff;
	if (_IOC_TYPE(request) != KVMIO || self.inside.load(std::memory_order_relaxed))
		return device::forward(fd, request, argument);

	notice_copy();

	switch (request) {
	case KVM_RUN:
		return run_vcpu(fd, request, argument);
	case KVM_CREATE_VM: {
		const int made = device::forward(fd, request, argument);

		if (made >= 0)
			vm_created(made);
		return made;
	}
	case KVM_SET_USER_MEMORY_REGION:
	case set_user_memory_region2:
		return set_region(fd, request, argument);
	}

	vm *of = vm_of(fd);

	switch (before_call(request)) {
	case before::nothing:
		break;
	case before::if_collected:
		if (of && !is_collected(*of, argument))
			break;
		[[fallthrough]];
	case before::commit:
		complete(of);
	}
	return device::forward(fd, request, argument);
}

} // namespace memslot_run
