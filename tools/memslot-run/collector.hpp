// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * Makes the one-by-one memory calls of a VMM for one VM by commits, so that what a call has done
 * is true when it returns and yet no vCPU finds a hole.
 *
 * Each call is a commit of its own, but for what is done with memory that was deleted.  A deletion
 * is a commit that withdraws the memory: the slot gives way to a reservation of its guest
 * addresses, which no vCPU gets through (its KVM_RUN fails and is made again later).  Slots that
 * are then created where all is reserved are collected, and one commit puts them in the place of
 * all reservations.  What is reserved until then and has got no slot is a hole from then on.
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
	/* where this many bytes are that nobody can access; 0: nowhere */
	{
		k.inaccessible(std::uint64_t{})
		} -> std::same_as<std::uint64_t>;
	/* vCPUs may meet a reservation from now on */
	{
		k.withdraws()
		} -> std::same_as<void>;
	/* they can meet none any more */
	{
		k.restored()
		} -> std::same_as<void>;
	/* a batch did not commit and goes to KVM slot by slot */
	{
		k.tell_failed(err, reply.reason, std::size_t{})
		} -> std::same_as<void>;
	/* KVM refused one of those calls */
	{
		k.tell_lost(call, err)
		} -> std::same_as<void>;
};

/** What is known of the thread that makes a call. */
struct caller {
	/** it holds a mutex */
	bool locked;
	/** somebody makes KVM_RUN again for a vCPU that meets a reservation, and ends what lasts
	 * too long */
	bool can_withdraw;
};

/**
 * The changes of one VM.  As with layout, zero bytes are a valid object before start(), and an
 * object is large.  Never allocates.
 */
template <kernel Kernel>
class collector {
public:
	/** Most slots of one batch; with more, it is committed in between. */
	static constexpr std::size_t max_entries = 4096;

	/**
	 * How long a transaction waits at most for the next call of a thread without a mutex, in
	 * nanoseconds.
	 */
	static constexpr std::uint64_t patience = 1'000'000;
	/**
	 * The same for a thread that holds a mutex: its release ends the transaction.  The thread
	 * may lose its processor in between, so being as short here would tear transactions on a
	 * busy machine.
	 */
	static constexpr std::uint64_t patience_locked = 100'000'000;

	/** How often a commit is tried while the VM is busy. */
	static constexpr int attempts = 3;

	/** Begins with a VM that has no slots. */
	void start(const limits &allowed, statistics &counters) noexcept
	{
		layout_.clear();
		reserved_.clear();
		clear();
		limits_ = allowed;
		statistics_ = &counters;
	}

	/**
	 * One call of the VMM.
	 *
	 * @param kernel where to commit
	 * @param call what it asked for
	 * @param by who asked
	 * @param pass makes the call as the VMM would have; returns 0 or an errno
	 * @return 0, or the errno that KVM would have returned
	 */
	template <std::invocable Pass>
	int set_region(Kernel &kernel, const kvm_userspace_memory_region &call, caller by,
		       Pass &&pass)
	{
		const slot which{call.slot >> 16, call.slot & 0xffff};

		if (!well_formed(call))
			return EINVAL;

		const region old = layout_.at(which.space, which.id);
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

		if (wanted.present() && placed && layout_.overlaps(which.space, which.id, wanted))
			return EEXIST;

		/* With no room for what it takes, the transaction ends before it */
		if (entries_ + room_for(which, wanted) > capacity())
			commit(kernel, moment::full);

		std::uint32_t reason = MEMSLOT_REASON_NONE;
		const int err = change(kernel, which, old, wanted, by, reason);

		switch (err) {
		case 0:
			count(statistics_->changes);
			return 0;
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

	/** Ends the transaction: applies what was collected, and reserves nothing any more. */
	void commit(Kernel &kernel, moment why)
	{
		if (!entries_)
			return;

		std::uint32_t reason = MEMSLOT_REASON_NONE;
		const int err = try_commit(kernel, batch(), reason);

		if (err)
			apply_singly(kernel, err, reason);
		end(kernel, why);
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

	/** How often a call has begun a transaction or had a part in it. */
	[[nodiscard]] std::uint64_t steps() const noexcept
	{
		return steps_;
	}

	/** Number of the batch that is being collected; every commit begins a new one. */
	[[nodiscard]] std::uint64_t number() const noexcept
	{
		return number_;
	}

	/**
	 * True if KVM does not have this slot yet.
	 *
	 * @param slot as in struct kvm_dirty_log
	 */
	[[nodiscard]] bool is_collected(std::uint32_t slot) const noexcept
	{
		const unsigned space = slot >> 16;
		const unsigned id = slot & 0xffff;

		return space < layout::max_spaces && id < layout::max_ids && position_[space][id] &&
		       layout_.at(space, id).present();
	}

private:
	static constexpr std::uint32_t known_flags = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;
	static constexpr std::uint64_t page_mask = 0xfff;
	/** KVM_MEM_MAX_NR_PAGES */
	static constexpr std::uint64_t max_pages = (1ULL << 31) - 1;

	struct slot {
		unsigned space;
		unsigned id;
	};

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

	static memslot_entry to_entry(slot which, const region &wanted) noexcept
	{
		return {
			.slot = which.id,
			.address_space = which.space,
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

	[[nodiscard]] std::size_t capacity() const noexcept
	{
		return std::min<std::size_t>(max_entries, limits_.max_entries);
	}

	/** Calls for each part of the region that is not reserved. */
	template <typename Action>
	void for_gaps(unsigned space, const region &wanted, Action &&action) const
	{
		std::uint64_t from = wanted.guest_phys_addr;

		for (;;) {
			const region gap = reserved_.gap(space, from, wanted.guest_end());

			if (!gap.present())
				break;
			action(gap);
			from = gap.guest_end();
		}
	}

	/** KVM has another slot by this number, or none, than the VMM thinks. */
	[[nodiscard]] bool differs(slot which) const noexcept
	{
		return position_[which.space][which.id] != 0;
	}

	/** True if a slot has nothing to do with what was collected, and with what is reserved. */
	[[nodiscard]] bool is_apart(slot which, const region &wanted) const noexcept
	{
		return !differs(which) && !reserved_.overlaps(which.space, layout::no_id, wanted);
	}

	/** How many entries a change adds to the batch. */
	[[nodiscard]] std::size_t room_for(slot which, const region &wanted) const
	{
		std::size_t entries = differs(which) ? 0 : 1;

		if (wanted.present() && is_apart(which, wanted))
			return 0;
		for_gaps(which.space, wanted, [&entries](const region &) { entries++; });
		return entries;
	}

	/** Does what a call that KVM would accept asks for; nothing has changed if it fails. */
	int change(Kernel &kernel, slot which, const region &old, const region &wanted, caller by,
		   std::uint32_t &reason)
	{
		int err = 0;

		if (!wanted.present() && !differs(which))
			err = withdraw(kernel, which, old, by, reason);
		else if (wanted.present() && is_apart(which, wanted))
			err = apply(kernel, which, wanted, reason);
		else
			return collect(kernel, which, old, wanted, by, reason);
		if (!err)
			layout_.set(which.space, which.id, wanted);
		return err;
	}

	/** One slot's change that nothing collected has to do with. */
	int apply(Kernel &kernel, slot which, const region &wanted, std::uint32_t &reason)
	{
		const memslot_entry entry = to_entry(which, wanted);
		const int err = try_commit(kernel, {&entry, 1}, reason);

		if (!err)
			count(statistics_->at_once);
		return err;
	}

	/** Takes a slot that KVM has away from the guest. */
	int withdraw(Kernel &kernel, slot which, const region &old, caller by,
		     std::uint32_t &reason)
	{
		if (by.can_withdraw && entries_ < capacity()) {
			batch_[entries_] = to_entry(which, old);
			if (!reserve(kernel, 1, reason)) {
				extend(kernel, by);
				return 0;
			}
		}
		/* As KVM does it: there is a hole */
		return apply(kernel, which, {}, reason);
	}

	/**
	 * Lets the guest wait at these addresses until the transaction ends.
	 *
	 * @param how_many entries behind the batch's end: the slots that are to hold reservations
	 */
	int reserve(Kernel &kernel, std::size_t how_many, std::uint32_t &reason)
	{
		const std::span<memslot_entry> added{&batch_[entries_], how_many};

		for (memslot_entry &entry : added) {
			entry.userspace_addr = kernel.inaccessible(entry.memory_size);
			entry.flags = 0;
			if (!entry.userspace_addr)
				return ENOMEM;
		}

		/* Before a vCPU can meet one: it asks afterwards whether there was any */
		if (!entries_)
			kernel.withdraws();

		const int err = try_commit(kernel, added, reason);

		if (err) {
			if (!entries_)
				kernel.restored();
			return err;
		}
		count(statistics_->withdrawals);
		for (memslot_entry &entry : added) {
			const region reservation{
				.guest_phys_addr = entry.guest_phys_addr,
				.memory_size = entry.memory_size,
				.userspace_addr = entry.userspace_addr,
				.flags = 0,
			};

			reserved_.set(entry.address_space, entry.slot, reservation);
			committed_[entries_] = reservation;
			position_[entry.address_space][entry.slot] =
				static_cast<std::uint16_t>(++entries_);
			/* Unless the VMM wants something else by then */
			entry = to_entry({entry.address_space, entry.slot}, {});
		}
		return 0;
	}

	/** A number that neither the VMM nor a reservation uses, below @p below; that, if none is.
	 */
	[[nodiscard]] unsigned free_id(unsigned space, unsigned below) const
	{
		for (unsigned id = below; id-- > 0;) {
			if (!layout_.at(space, id).present() && !differs({space, id}))
				return id;
		}
		return below;
	}

	/** Reserves what a slot needs besides what is reserved already. */
	int reserve_gaps(Kernel &kernel, slot which, const region &wanted, std::uint32_t &reason)
	{
		unsigned id = limits_.max_slot + 1;
		std::size_t found = 0;
		bool enough = true;

		for_gaps(which.space, wanted, [&](const region &gap) {
			const unsigned next = free_id(which.space, id);

			enough &= next != id;
			id = next;
			batch_[entries_ + found++] = to_entry({which.space, id}, gap);
		});
		if (!enough)
			return ENOSPC;
		return found ? reserve(kernel, found, reason) : 0;
	}

	/** Collects a change in memory that the guest waits for, or ends the transaction with it.
	 */
	int collect(Kernel &kernel, slot which, const region &old, const region &wanted, caller by,
		    std::uint32_t &reason)
	{
		/* KVM moves a slot in one step, its dirty log with it */
		const bool moves = old.present() && !differs(which);
		const undo before = put(which, old, wanted);

		layout_.set(which.space, which.id, wanted);

		/*
		 * Who holds no mutex has no more to come, if memory is where it was taken away. And
		 * where nothing more can be reserved, vCPUs would find no memory at what is there
		 * when the call returns.
		 */
		const bool ends = moves || (!by.locked && is_whole()) ||
				  reserve_gaps(kernel, which, wanted, reason);
		const int err = ends ? try_commit(kernel, batch(), reason) : check(kernel);

		if (err) {
			layout_.set(which.space, which.id, old);
			take_back(which, before);
			return err;
		}
		if (ends)
			end(kernel, moment::whole);
		else
			extend(kernel, by);
		return 0;
	}

	/** Makes the batch want this region for the slot; @p old is what the VMM thinks it is. */
	undo put(slot which, const region &old, const region &wanted)
	{
		std::uint16_t &position = position_[which.space][which.id];
		const undo before{
			.had_entry = position != 0,
			.wanted = old,
			.committed = position ? committed_[position - 1] : old,
		};

		if (before.committed == wanted) {
			/* As it is today: no entry */
			if (position)
				drop(which);
			return before;
		}
		if (!position) {
			position = static_cast<std::uint16_t>(++entries_);
			committed_[position - 1] = old;
		}
		batch_[position - 1] = to_entry(which, wanted);
		return before;
	}

	void take_back(slot which, const undo &before)
	{
		std::uint16_t &position = position_[which.space][which.id];

		if (!before.had_entry) {
			if (position)
				drop(which);
			return;
		}
		if (!position) {
			position = static_cast<std::uint16_t>(++entries_);
			committed_[position - 1] = before.committed;
		}
		batch_[position - 1] = to_entry(which, before.wanted);
	}

	/** Removes the slot's entry; the last one takes its place. */
	void drop(slot which)
	{
		const std::size_t hole = position_[which.space][which.id] - 1U;
		const std::size_t last = --entries_;

		batch_[hole] = batch_[last];
		committed_[hole] = committed_[last];
		position_[batch_[hole].address_space][batch_[hole].slot] =
			static_cast<std::uint16_t>(hole + 1);
		position_[which.space][which.id] = 0;
	}

	/** True if the end of the transaction leaves no hole where there was memory. */
	[[nodiscard]] bool is_whole() const noexcept
	{
		for (std::size_t i = 0; i < entries_; i++) {
			if (committed_[i].present() &&
			    !layout_.covers(batch_[i].address_space, committed_[i]))
				return false;
		}
		return true;
	}

	/** Commits, if need be more than once. */
	int try_commit(Kernel &kernel, std::span<const memslot_entry> entries,
		       std::uint32_t &reason)
	{
		memslot_commit reply{};
		int err = 0;

		for (int attempt = 0; attempt < attempts; attempt++) {
			if (attempt)
				kernel.pause();

			const std::uint64_t begin = kernel.now();

			err = kernel.commit(entries, 0, reply);

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
		count(statistics_->entries, entries.size());
		count(statistics_->grace_periods, reply.grace_periods);
		count(statistics_->fenced, reply.strategy == MEMSLOT_STRATEGY_FENCE);
		count(statistics_->parked, reply.strategy == MEMSLOT_STRATEGY_PARK);
		return 0;
	}

	/** Would the batch commit? */
	int check(Kernel &kernel)
	{
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
		const auto call = [&](const memslot_entry &entry, const region &wanted) {
			const kvm_userspace_memory_region one{
				.slot = entry.address_space << 16 | entry.slot,
				.flags = wanted.flags,
				.guest_phys_addr = wanted.guest_phys_addr,
				.memory_size = wanted.memory_size,
				.userspace_addr = wanted.userspace_addr,
			};

			err = kernel.set_region(one);
			if (err) {
				count(statistics_->lost);
				kernel.tell_lost(one, err);
			}
		};

		count(statistics_->failed);
		kernel.tell_failed(err, reason, entries_);
		/* What is to go first: it is where the rest goes */
		for (std::size_t i = 0; i < entries_; i++) {
			if (committed_[i].present())
				call(batch_[i], {});
		}
		for (std::size_t i = 0; i < entries_; i++) {
			const region &wanted = layout_.at(batch_[i].address_space, batch_[i].slot);

			if (wanted.present())
				call(batch_[i], wanted);
		}
	}

	/** This caller has its time to go on; what its call took does not count. */
	void extend(Kernel &kernel, caller by)
	{
		steps_++;
		deadline_ = std::max(deadline_,
				     kernel.now() + (by.locked ? patience_locked : patience));
	}

	/** The transaction is over. */
	void end(Kernel &kernel, moment why)
	{
		count(statistics_->moments[static_cast<std::size_t>(why)]);
		clear();
		kernel.restored();
	}

	/** Forgets the batch, and the reservations of it. */
	void clear() noexcept
	{
		for (std::size_t i = 0; i < entries_; i++)
			position_[batch_[i].address_space][batch_[i].slot] = 0;
		reserved_.clear();
		entries_ = 0;
		deadline_ = 0;
		number_++;
	}

	/** as the VMM has it */
	layout layout_;
	/** what KVM has that is no memory, under the numbers of the slots that hold it */
	layout reserved_;
	/** 1 + the slot's place in the batch, 0 if it has none */
	std::array<std::array<std::uint16_t, layout::max_ids>, layout::max_spaces> position_;
	std::array<memslot_entry, max_entries> batch_;
	/** for each entry, what KVM has today: a reservation, or nothing */
	std::array<region, max_entries> committed_;
	std::size_t entries_;
	std::uint64_t deadline_;
	std::uint64_t number_;
	std::uint64_t steps_;
	limits limits_;
	statistics *statistics_;
};

} // namespace memslot_run
