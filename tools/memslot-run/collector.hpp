// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * Collects the one-by-one memory calls of a VMM for one VM and commits them as batches.
 *
 * Knows neither threads nor file descriptors: when to commit is the caller's business
 * (session.cpp), and everything that reaches the kernel goes through the Kernel given to it.
 */
#pragma once

#include "layout.hpp"
#include "statistics.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <linux/kvm.h>
#include <linux/memslot.h>
#include <span>

namespace memslot_run {

/** What the module and this VM allow. */
struct limits {
	std::uint32_t max_slot;
	std::uint32_t max_entries;
	std::uint32_t address_spaces;
	/** KVM has KVM_SET_USER_MEMORY_REGION2 */
	bool region2;
};

/** The kernel, as seen by the collector of one VM.  Results are 0 or an errno. */
template <typename T>
concept kernel = requires(T k, std::span<const memslot_entry> entries, std::uint32_t flags,
			  memslot_commit &reply, const kvm_userspace_memory_region &call, int err)
{
	/* MEMSLOT_IOC_COMMIT */
	{
		k.commit(entries, flags, reply)
		} -> std::same_as<int>;
	/* KVM_SET_USER_MEMORY_REGION */
	{
		k.set_region(call)
		} -> std::same_as<int>;
	/* nanoseconds of a monotonic clock */
	{
		k.now()
		} -> std::same_as<std::uint64_t>;
	/* sleeps a little before the next attempt */
	{
		k.pause()
		} -> std::same_as<void>;
	/* a batch did not commit and goes to KVM call by call */
	{
		k.tell_failed(err, reply.reason, std::size_t{})
		} -> std::same_as<void>;
	/* KVM refused one of those calls */
	{
		k.tell_lost(call, err)
		} -> std::same_as<void>;
};

/**
 * The changes of one VM.  As with layout, zero bytes are a valid object before start(), and an
 * object is large.  Never allocates.
 */
template <kernel Kernel>
class collector {
public:
	/** Most slots and most calls of one batch; with more, it is committed in between. */
	static constexpr std::size_t max_entries = 4096;
	static constexpr std::size_t max_calls = 2 * max_entries;

	/** How long changes of a thread without a mutex wait at most, in nanoseconds. */
	static constexpr std::uint64_t patience = 1'000'000;
	/**
	 * The same for changes of a thread that holds a mutex: nobody who respects its lock looks
	 * at the result before it is released, which commits.  The thread may lose its processor
	 * in between, so being as short here would tear transactions on a busy machine.
	 */
	static constexpr std::uint64_t patience_locked = 100'000'000;

	/** How often a commit is tried while the VM is busy. */
	static constexpr int attempts = 3;

	/** Begins with a VM that has no slots. */
	void start(const limits &allowed, statistics &counters) noexcept
	{
		layout_.clear();
		clear();
		limits_ = allowed;
		statistics_ = &counters;
	}

	/**
	 * One call of the VMM.
	 *
	 * @param kernel where to commit
	 * @param call what it asked for
	 * @param locked if the calling thread holds a mutex
	 * @param pass makes the call as the VMM would have; returns 0 or an errno
	 * @return 0, or the errno that KVM would have returned
	 */
	template <std::invocable Pass>
	int set_region(Kernel &kernel, const kvm_userspace_memory_region &call, bool locked,
		       Pass &&pass)
	{
		const unsigned space = call.slot >> 16;
		const unsigned id = call.slot & 0xffff;

		if (!well_formed(call))
			return EINVAL;

		const region old = layout_.at(space, id);
		region wanted = from_call(call);

		/* guest_memfd, or a flag of the future: not for us, nor is its slot later on */
		if ((call.flags | old.flags) & ~known_flags)
			return pass_on(kernel, call, pass);

		if (!wanted.present()) {
			if (!old.present())
				return EINVAL;
			wanted = {};
		} else if (old.present()) {
			if (wanted.userspace_addr != old.userspace_addr ||
			    wanted.memory_size != old.memory_size ||
			    (wanted.flags ^ old.flags) & KVM_MEM_READONLY)
				return EINVAL;
			if (wanted == old)
				return 0;
		}

		const bool placed = !old.present() || wanted.guest_phys_addr != old.guest_phys_addr;

		if (wanted.present() && placed && layout_.overlaps(space, id, wanted))
			return EEXIST;

		if (calls_ == max_calls || (is_full() && !position_[space][id]))
			commit(kernel, moment::full);

		const undo before = put(space, id, old, wanted);

		layout_.set(space, id, wanted);

		/* Who holds no mutex has no transaction that we could know of, unless half done */
		const bool at_once = !locked && entries_ && is_whole();
		std::uint32_t reason = MEMSLOT_REASON_NONE;
		const int err = at_once ? try_commit(kernel, reason) : check(kernel);

		if (err) {
			layout_.set(space, id, old);
			take_back(space, id, before);
			switch (err) {
			case ENOENT:
				return EINVAL;
			case EINVAL:
			case EEXIST:
			case ENOMEM:
			case EIO:
			case EINTR:
				return err;
			case EBUSY:
				count(statistics_->failed);
				kernel.tell_failed(err, reason, 1);
				break;
			}
			/* Not for the module: KVM has its own answer */
			return pass_on(kernel, call, pass);
		}

		count(statistics_->changes);
		if (at_once)
			count(statistics_->moments[static_cast<std::size_t>(moment::whole)]);
		if (at_once || !entries_) {
			/* Applied, or it undid what was collected */
			clear();
			return 0;
		}
		log_[calls_++] = call;
		set_deadline(kernel.now() + (locked ? patience_locked : patience));
		return 0;
	}

	/** Applies what was collected; nothing is left afterwards. */
	void commit(Kernel &kernel, moment why)
	{
		if (!entries_)
			return;

		std::uint32_t reason = MEMSLOT_REASON_NONE;
		const int err = try_commit(kernel, reason);

		count(statistics_->moments[static_cast<std::size_t>(why)]);
		if (err)
			apply_singly(kernel, err, reason);
		clear();
	}

	/** True if there is something to commit. */
	[[nodiscard]] bool pending() const noexcept
	{
		return entries_ != 0;
	}

	/** When it has to be committed at the latest; 0 if there is nothing. */
	[[nodiscard]] std::uint64_t deadline() const noexcept
	{
		return deadline_;
	}

	/** Number of the batch that is being collected; every commit begins a new one. */
	[[nodiscard]] std::uint64_t number() const noexcept
	{
		return number_;
	}

	/** True if what was collected adds, drops or replaces a slot with any of this memory. */
	[[nodiscard]] bool uses(std::uint64_t address, std::uint64_t length) const noexcept
	{
		for (std::size_t i = 0; i < entries_; i++) {
			const region after{
				.guest_phys_addr = 0,
				.memory_size = batch_[i].memory_size,
				.userspace_addr = batch_[i].userspace_addr,
				.flags = 0,
			};

			if (after.uses(address, length) || committed_[i].uses(address, length))
				return true;
		}
		return false;
	}

	/**
	 * True if the slot's dirty log cannot be read from KVM as it is.  A slot that is about to
	 * go can: KVM still has it.
	 *
	 * @param slot as in struct kvm_dirty_log
	 */
	[[nodiscard]] bool log_needs_commit(std::uint32_t slot) const noexcept
	{
		const unsigned space = slot >> 16;
		const unsigned id = slot & 0xffff;

		if (space >= layout::max_spaces || id >= layout::max_ids || !position_[space][id])
			return false;

		const region &kvm_has = committed_[position_[space][id] - 1];
		region then = layout_.at(space, id);

		if (!then.present())
			return false;
		/* The same bitmap, if both are logged and differ in nothing else */
		then.flags |= KVM_MEM_LOG_DIRTY_PAGES;
		return (then.flags ^ kvm_has.flags) & KVM_MEM_LOG_DIRTY_PAGES ||
		       then.guest_phys_addr != kvm_has.guest_phys_addr ||
		       then.memory_size != kvm_has.memory_size ||
		       then.userspace_addr != kvm_has.userspace_addr;
	}

private:
	static constexpr std::uint32_t known_flags = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;
	static constexpr std::uint64_t page_mask = 0xfff;
	/** KVM_MEM_MAX_NR_PAGES */
	static constexpr std::uint64_t max_pages = (1ULL << 31) - 1;

	/** The state of one slot's entry before put(). */
	struct undo {
		bool had_entry;
		region wanted;
		region committed;
	};

	/** KVM's checks that need no layout. */
	[[nodiscard]] bool well_formed(const kvm_userspace_memory_region &call) const noexcept
	{
		return !((call.memory_size | call.guest_phys_addr | call.userspace_addr) &
			 page_mask) &&
		       call.slot >> 16 < limits_.address_spaces &&
		       (call.slot & 0xffff) <= limits_.max_slot &&
		       call.guest_phys_addr + call.memory_size >= call.guest_phys_addr &&
		       call.memory_size / (page_mask + 1) <= max_pages;
	}

	static region from_call(const kvm_userspace_memory_region &call) noexcept
	{
		return {
			.guest_phys_addr = call.guest_phys_addr,
			.memory_size = call.memory_size,
			.userspace_addr = call.userspace_addr,
			.flags = call.flags,
		};
	}

	static memslot_entry to_entry(unsigned space, unsigned id, const region &wanted) noexcept
	{
		return {
			.slot = id,
			.address_space = space,
			.flags = wanted.flags,
			.reserved = 0,
			.guest_phys_addr = wanted.guest_phys_addr,
			.memory_size = wanted.memory_size,
			.userspace_addr = wanted.userspace_addr,
			.dirty_bitmap = 0,
			.dirty_bitmap_size = 0,
		};
	}

	[[nodiscard]] std::span<const memslot_entry> batch() const noexcept
	{
		return {batch_.data(), entries_};
	}

	[[nodiscard]] bool is_full() const noexcept
	{
		return entries_ == std::min<std::size_t>(max_entries, limits_.max_entries);
	}

	/** Makes the batch want this region for the slot; @p old is what the VMM thinks it is. */
	undo put(unsigned space, unsigned id, const region &old, const region &wanted)
	{
		std::uint16_t &position = position_[space][id];
		const undo before{
			.had_entry = position != 0,
			.wanted = old,
			.committed = position ? committed_[position - 1] : old,
		};

		if (before.committed == wanted) {
			/* As it is today: no entry */
			if (position)
				drop(space, id);
			return before;
		}
		if (!position) {
			position = static_cast<std::uint16_t>(++entries_);
			committed_[position - 1] = old;
		}
		batch_[position - 1] = to_entry(space, id, wanted);
		return before;
	}

	void take_back(unsigned space, unsigned id, const undo &before)
	{
		std::uint16_t &position = position_[space][id];

		if (!before.had_entry) {
			if (position)
				drop(space, id);
			return;
		}
		if (!position) {
			position = static_cast<std::uint16_t>(++entries_);
			committed_[position - 1] = before.committed;
		}
		batch_[position - 1] = to_entry(space, id, before.wanted);
	}

	/** Removes the slot's entry; the last one takes its place. */
	void drop(unsigned space, unsigned id)
	{
		const std::size_t hole = position_[space][id] - 1U;
		const std::size_t last = --entries_;

		batch_[hole] = batch_[last];
		committed_[hole] = committed_[last];
		position_[batch_[hole].address_space][batch_[hole].slot] =
			static_cast<std::uint16_t>(hole + 1);
		position_[space][id] = 0;
	}

	/**
	 * False if a slot was deleted and something that it mapped is mapped by no other: then the
	 * slots that take its place are yet to come, or it really is to go.  A slot that has moved
	 * leaves nothing to wait for: KVM does that in one call.
	 */
	[[nodiscard]] bool is_whole() const noexcept
	{
		for (std::size_t i = 0; i < entries_; i++) {
			const memslot_entry &entry = batch_[i];
			const region &was = committed_[i];
			const bool moved = entry.memory_size == was.memory_size &&
					   entry.userspace_addr == was.userspace_addr;

			if (was.present() && !moved && !layout_.covers(entry.address_space, was))
				return false;
		}
		return true;
	}

	/** Commits, if need be more than once; the batch is still there afterwards. */
	int try_commit(Kernel &kernel, std::uint32_t &reason)
	{
		memslot_commit reply{};
		int err = 0;

		for (int attempt = 0; attempt < attempts; attempt++) {
			if (attempt)
				kernel.pause();

			const std::uint64_t begin = kernel.now();

			err = kernel.commit(batch(), 0, reply);

			const std::uint64_t took = kernel.now() - begin;

			count(statistics_->ns_in_commits, took);
			raise_to(statistics_->ns_longest_commit, took);
			if (err != EBUSY && err != ENOMEM)
				break;
		}
		reason = reply.reason;
		if (err)
			return err;

		count(statistics_->commits);
		count(statistics_->entries, entries_);
		count(statistics_->grace_periods, reply.grace_periods);
		count(statistics_->fenced, reply.strategy == MEMSLOT_STRATEGY_FENCE);
		count(statistics_->parked, reply.strategy == MEMSLOT_STRATEGY_PARK);
		return 0;
	}

	/** Would the batch commit? */
	int check(Kernel &kernel)
	{
		if (!entries_)
			return 0;

		memslot_commit reply{};
		const std::uint64_t begin = kernel.now();
		const int err = kernel.commit(batch(), MEMSLOT_COMMIT_TEST_ONLY, reply);

		count(statistics_->ns_in_checks, kernel.now() - begin);
		return err;
	}

	template <typename Pass>
	int pass_on(Kernel &kernel, const kvm_userspace_memory_region &call, Pass &&pass)
	{
		/* It must not overtake what came before */
		commit(kernel, moment::ioctl);

		const int err = pass();

		count(statistics_->passed);
		if (!err)
			layout_.set(call.slot >> 16, call.slot & 0xffff,
				    call.memory_size ? from_call(call) : region{});
		return err;
	}

	/** What the VMM would have got without us: better torn than lost. */
	void apply_singly(Kernel &kernel, int err, std::uint32_t reason)
	{
		count(statistics_->failed);
		kernel.tell_failed(err, reason, calls_);
		for (std::size_t i = 0; i < calls_; i++) {
			err = kernel.set_region(log_[i]);
			if (err) {
				count(statistics_->lost);
				kernel.tell_lost(log_[i], err);
			}
		}
	}

	void set_deadline(std::uint64_t when) noexcept
	{
		deadline_ = deadline_ ? std::min(deadline_, when) : when;
	}

	void clear() noexcept
	{
		for (std::size_t i = 0; i < entries_; i++)
			position_[batch_[i].address_space][batch_[i].slot] = 0;
		entries_ = 0;
		calls_ = 0;
		deadline_ = 0;
		number_++;
	}

	layout layout_;
	/** 1 + the slot's place in the batch, 0 if it has none */
	std::array<std::array<std::uint16_t, layout::max_ids>, layout::max_spaces> position_;
	std::array<memslot_entry, max_entries> batch_;
	/** for each entry, what KVM has today */
	std::array<region, max_entries> committed_;
	std::size_t entries_;
	/** the calls that led to the batch, in their order */
	std::array<kvm_userspace_memory_region, max_calls> log_;
	std::size_t calls_;
	std::uint64_t deadline_;
	std::uint64_t number_;
	limits limits_;
	statistics *statistics_;
};

} // namespace memslot_run
