// SPDX-License-Identifier: GPL-2.0
#include "vm.hpp"

#include "clock.hpp"
#include "device.hpp"
#include "next.hpp"
#include "raw_syscall.hpp"
#include "say.hpp"
#include "withdrawals.hpp"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <memslot.hpp>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>

namespace memslot_run {

constinit transactions withdrawn;

std::atomic<bool> threads_allowed{true};

int vm_kernel::commit(std::span<const memslot_entry> entries, std::uint32_t flags,
		      memslot_commit &reply)
{
	return device::commit(memslot_fd, entries, flags, reply);
}

int vm_kernel::set_region(const kvm_userspace_memory_region &call)
{
	return device::set_region(vm_fd, call);
}

std::uint64_t vm_kernel::now()
{
	return memslot_run::now();
}

void vm_kernel::pause()
{
	const timespec time = to_timespec(1'000'000);

	raw_syscall(SYS_nanosleep, arg(&time));
}

std::uint64_t vm_kernel::inaccessible(std::uint64_t size)
{
	if (size > nothing_size) {
		const std::uint64_t wanted = std::max(size, 2 * nothing_size);
		const long address = raw_syscall(SYS_mmap, 0, static_cast<long>(wanted), PROT_NONE,
						 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
						 0);

		if (is_error(address))
			return 0;
		nothing = static_cast<std::uint64_t>(address);
		nothing_size = wanted;
	}
	return nothing;
}

void vm_kernel::withdraws()
{
	withdrawn.begin();
}

void vm_kernel::restored()
{
	withdrawn.end();
}

void vm_kernel::tell_failed(int err, std::uint32_t reason, std::size_t slots)
{
	/* Where there is no reason the errno says it all */
	const std::string_view words = reason ? memslot::words(static_cast<memslot_reason>(reason))
					      : "";

	say("a batch did not commit: %s%s%.*s; changing its %zu slots one by one, vCPUs may see "
	    "holes",
	    strerrordesc_np(err), words.empty() ? "" : ": ", static_cast<int>(words.size()),
	    words.data(), slots);
}

void vm_kernel::tell_lost(const kvm_userspace_memory_region &call, int err)
{
	say("KVM refused slot %#x at %#llx, %#llx bytes, after saying yes to it: %s", call.slot,
	    call.guest_phys_addr, call.memory_size, strerrordesc_np(err));
}

void timekeeper::start(vm &whose)
{
	if (running_ || !threads_allowed.load(std::memory_order_relaxed))
		return;

	sigset_t all;
	std::uint64_t before = 0;
	pthread_attr_t attributes;
	pthread_t thread;
	const auto run = [](void *argument) -> void * {
		vm &mine = *static_cast<vm *>(argument);

		prctl(PR_SET_NAME, "memslot-run");
		mine.keeper.loop(mine);
	};

	/* The VMM's signals are not for it */
	sigfillset(&all);
	raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, arg(&all), arg(&before), sizeof(before));
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	running_ = next<"pthread_create">(pthread_create, &thread, &attributes,
					  static_cast<void *(*)(void *)>(run),
					  static_cast<void *>(&whose)) == 0;
	pthread_attr_destroy(&attributes);
	raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, arg(&before), 0, sizeof(before));
}

void timekeeper::loop(vm &whose)
{
	constexpr std::uint64_t never = ~0ULL;
	const auto next = [&whose] {
		const std::uint64_t deadline = whose.deadline.load();

		return deadline ? deadline : never;
	};

	for (;;) {
		const std::uint32_t seen = wakeups_.load();
		const std::uint64_t until = next();
		const std::uint64_t time = now();

		if (until <= time) {
			const inside busy;
			use it(whose);

			/* The lock may have come with another transaction */
			if (whose.changes->pending() && whose.changes->deadline() <= now())
				it.commit(moment::deadline);
			continue;
		}
		sleeps_until_.store(until);
		if (next() == until) {
			const timespec timeout = to_timespec(until - time);

			futex_wait(wakeups_, seen, until == never ? nullptr : &timeout);
		}
		sleeps_until_.store(0);
	}
}

} // namespace memslot_run
