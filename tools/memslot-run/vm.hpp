// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * One VM: its changes that were collected, the kernel that they go to, and the thread that ends
 * what nobody else has ended in time.
 */
#pragma once

#include "collector.hpp"
#include "futex.hpp"
#include "session.hpp"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <linux/kvm.h>
#include <linux/memslot.h>
#include <mutex>
#include <span>
#include <type_traits>

namespace memslot_run {

/** The kernel behind one VM.  The descriptors can change while a commit waits. */
struct vm_kernel {
	std::atomic<int> memslot_fd{-1};
	/** any descriptor of the VM that is open */
	std::atomic<int> vm_fd{-1};
	/** what reservations are backed with; never unmapped: its addresses must stay nobody's */
	std::uint64_t nothing = 0;
	std::uint64_t nothing_size = 0;

	int commit(std::span<const memslot_entry> entries, std::uint32_t flags,
		   memslot_commit &reply);
	int set_region(const kvm_userspace_memory_region &call);
	std::uint64_t now();
	void pause();
	/** All reservations are of the same addresses: it does not matter where nothing is. */
	std::uint64_t inaccessible(std::uint64_t size);
	void withdraws();
	void restored();
	void tell_failed(int err, std::uint32_t reason, std::size_t slots);
	void tell_lost(const kvm_userspace_memory_region &call, int err);
};

using vm_collector = collector<vm_kernel>;

/* Made by mmap(), which gives it the zero bytes that it wants */
static_assert(std::is_trivially_default_constructible_v<vm_collector>);

struct vm;

/**
 * The thread that ends a VM's transactions that nobody else ended in time.
 *
 * Arming costs a system call only while it sleeps longer than the new deadline: either it sees the
 * deadline when it looks again after announcing how long it will sleep, or the arming thread sees
 * the announcement.
 */
class timekeeper {
public:
	/** Starts the thread, unless it is there. */
	void start(vm &whose);

	/** False if no thread could be started: then nothing may be left for later. */
	[[nodiscard]] bool is_there() const noexcept
	{
		return running_;
	}

	/** There is a deadline. */
	void arm(std::uint64_t deadline) noexcept
	{
		if (sleeps_until_.load() <= deadline)
			return;
		wakeups_.fetch_add(1);
		futex_wake(wakeups_);
	}

	/** The thread is gone: for a copy of this process. */
	void abandon() noexcept
	{
		running_ = false;
	}

private:
	[[noreturn]] void loop(vm &whose);

	/** protected by table_lock while no VM is there */
	bool running_ = false;
	futex_word wakeups_{0};
	/** 0 while it is awake and will look again */
	std::atomic<std::uint64_t> sleeps_until_{0};
};

struct vm {
	/** of the collector, as of the last unlock; read without the lock */
	std::atomic<std::uint64_t> number{0};
	std::atomic<std::uint64_t> deadline{0};

	/** protected by table_lock; of a VM that is open, none are left while it is being closed */
	bool open = false;
	unsigned descriptors = 0;

	/**
	 * Protects what follows.  It is held while a commit waits, for as long as a vCPU sleeps in
	 * a page fault, say: so only those take it that would wait in KVM as well.
	 */
	futex_lock lock;
	bool region2 = false;
	vm_kernel kernel;
	/** stays once it is there, for the next VM in this place */
	vm_collector *changes = nullptr;
	timekeeper keeper;
};

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

/** The library may start threads: not in a copy that was made behind the C library's back. */
extern std::atomic<bool> threads_allowed;

} // namespace memslot_run
