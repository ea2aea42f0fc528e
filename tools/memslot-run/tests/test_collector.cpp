// SPDX-License-Identifier: GPL-2.0
/*
 * The collector, with a model in place of the kernel: calls in; errnos, batches and layouts out.
 */
#include "check.hpp"
#include "collector.hpp"
#include "held_locks.hpp"
#include "model.hpp"

#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace memslot_run;
using test::call;
using test::holds;
using test::model;
using test::same;

namespace {

constexpr std::uint32_t log_dirty = KVM_MEM_LOG_DIRTY_PAGES;
constexpr std::uint32_t readonly = KVM_MEM_READONLY;

/** Where reservations are. */
constexpr std::uint64_t nowhere = 0x7fff00000000;

struct fake_kernel {
	model vm;
	std::uint64_t clock = 1;
	/** what the next commits that are no test return, instead of being done */
	std::vector<int> fail_commits;
	/** what every test-only commit returns, if it would succeed */
	int fail_checks = 0;
	std::vector<std::vector<memslot_entry>> batches;
	std::vector<kvm_userspace_memory_region> singles;
	/** address for reservations; 0: there is no memory */
	std::uint64_t inaccessible_at = nowhere;
	/** transactions begun, and ended */
	int begun = 0;
	int ended = 0;
	int pauses = 0;
	int told_failed = 0;
	int told_lost = 0;

	int commit(std::span<const memslot_entry> entries, std::uint32_t flags,
		   memslot_commit &reply)
	{
		const bool test_only = flags & MEMSLOT_COMMIT_TEST_ONLY;

		clock += 10;
		if (!test_only && !fail_commits.empty()) {
			const int err = fail_commits.back();

			fail_commits.pop_back();
			return err;
		}

		const int err = vm.commit(entries, test_only);

		if (test_only)
			return err ? err : fail_checks;
		if (!err) {
			batches.emplace_back(entries.begin(), entries.end());
			reply.strategy = batches.size() % 2 ? MEMSLOT_STRATEGY_FENCE
							    : MEMSLOT_STRATEGY_PARK;
			reply.grace_periods = 1;
		}
		return err;
	}

	int set_region(const kvm_userspace_memory_region &one)
	{
		singles.push_back(one);
		return vm.set_region(one);
	}

	[[nodiscard]] std::uint64_t now() const
	{
		return clock;
	}

	void pause()
	{
		pauses++;
	}

	[[nodiscard]] std::uint64_t inaccessible(std::uint64_t) const
	{
		return inaccessible_at;
	}

	void withdraws()
	{
		begun++;
	}

	void restored()
	{
		ended++;
	}

	void tell_failed(int, std::uint32_t, std::size_t)
	{
		told_failed++;
	}

	void tell_lost(const kvm_userspace_memory_region &, int)
	{
		told_lost++;
	}
};

/** One VM under test. */
struct bench {
	fake_kernel kernel;
	statistics counters{};
	std::unique_ptr<collector<fake_kernel>> changes =
		std::make_unique<collector<fake_kernel>>();
	/** calls that were passed on */
	int passed = 0;
	bool can_withdraw = true;

	explicit bench(std::uint32_t max_entries = 1000, std::uint32_t max_slot = model::max_slot)
	{
		changes->start({.max_slot = max_slot,
				.max_entries = max_entries,
				.address_spaces = 2,
				.region2 = true},
			       counters);
	}

	int set(const kvm_userspace_memory_region &one, bool locked = true)
	{
		return changes->set_region(kernel, one, {locked, can_withdraw}, [&] {
			passed++;
			return kernel.vm.set_region(one);
		});
	}

	int remove(unsigned slot, bool locked = true)
	{
		return set(call(slot, 0, 0, 0), locked);
	}

	/** True if the guest waits at all these addresses. */
	[[nodiscard]] bool reserved(std::uint64_t gpa, std::uint64_t size, unsigned space = 0) const
	{
		for (std::uint64_t at = gpa; at < gpa + size; at += 0x1000) {
			bool found = false;

			for (const auto &[which, one] : kernel.vm.slots)
				found |= which.first == space && one.hva == nowhere &&
					 one.gpa <= at && at < one.gpa + one.size;
			if (!found)
				return false;
		}
		return true;
	}

	void commit(moment why = moment::unlock)
	{
		changes->commit(kernel, why);
	}

	[[nodiscard]] std::size_t commits_at(moment why) const
	{
		return counters.moments[static_cast<std::size_t>(why)];
	}
};

/** QEMU's way to toggle a PAM range: the RAM below 4 GiB is cut and put together again. */
void test_transaction()
{
	bench b;

	same(b.set(call(0, 0, 0xa0000, 0x10000000)), 0, "low RAM");
	same(b.set(call(1, 0xc0000, 0x40000, 0x100c0000)), 0, "RAM above the VGA window");
	same(b.kernel.batches.size(), 2U, "what was not there before is there at once");
	same(b.counters.at_once.load(), 2U, "at once");
	same(b.changes->deadline(), 0U, "nothing is left for later");
	same(b.kernel.begun, 0, "nothing was withdrawn");

	same(b.remove(1), 0, "delete");
	same(b.kernel.batches.size(), 3U, "the memory is gone at once");
	same(b.kernel.batches.back().size(), 1U, "by one entry");
	holds(b.reserved(0xc0000, 0x40000), "and its addresses are reserved");
	same(b.kernel.vm.slots.at({0, 1}).flags, 0U, "without flags");
	same(b.kernel.begun, 1, "a vCPU may meet that");
	same(b.set(call(1, 0xc0000, 0x10000, 0x100c0000)), 0, "its id again, smaller");
	same(b.set(call(2, 0xd0000, 0x30000, 0x20000000, readonly)), 0, "ROM in the rest");
	same(b.kernel.batches.size(), 3U, "both wait, as the guest does");
	holds(b.reserved(0xc0000, 0x40000), "for all of it");
	same(b.kernel.ended, 0, "until the end");
	b.commit();
	same(b.kernel.batches.size(), 4U, "one batch");
	same(b.kernel.batches.back().size(), 2U, "for both");
	same(b.kernel.ended, 1, "no vCPU can meet a reservation any more");
	same(b.kernel.vm.slots.size(), 3U, "there is none");
	same(b.counters.changes.load(), 5U, "changes");
	same(b.counters.commits.load(), 4U, "commits");
	same(b.counters.withdrawals.load(), 1U, "of which one withdrew memory");
	same(b.counters.entries.load(), 5U, "entries");
	same(b.counters.fenced.load(), 2U, "fenced, by the reply");
	same(b.counters.parked.load(), 2U, "parked, by the reply");
	same(b.counters.grace_periods.load(), 4U, "grace periods, by the reply");
	same(b.counters.ns_in_commits.load(), 40U, "time in commits");
	same(b.counters.ns_longest_commit.load(), 10U, "longest commit");
	same(b.counters.ns_in_checks.load(), 20U, "time in checks");
	same(b.commits_at(moment::unlock), 1U, "moments");

	b.commit();
	same(b.kernel.batches.size(), 4U, "nothing pending, nothing committed");
	same(b.kernel.ended, 1, "and nothing ended");

	b.remove(1);
	b.remove(2);
	b.set(call(2, 0xc0000, 0x40000, 0x100c0000));
	same(b.kernel.batches.size(), 6U, "two deletions, and a slot where both were");
	b.commit();
	same(b.kernel.batches.size(), 7U, "together again");
	same(b.kernel.batches.back().size(), 2U, "one comes, and a reservation goes");
	same(b.kernel.begun, 2, "one more transaction has begun");
	same(b.kernel.ended, 2, "and ended");
}

/** What a call has done is true when it returns, but for what the guest waits for. */
void test_at_once()
{
	bench b;
	const auto kvm_has = [&b](unsigned slot, std::uint64_t gpa, std::uint32_t flags) {
		const auto found = b.kernel.vm.slots.find({0, slot});

		return found != b.kernel.vm.slots.end() && found->second.gpa == gpa &&
		       found->second.flags == flags;
	};

	b.set(call(0, 0, 0x10000, 0x10000000));
	holds(kvm_has(0, 0, 0), "created");
	b.set(call(0, 0, 0x10000, 0x10000000, log_dirty));
	holds(kvm_has(0, 0, log_dirty), "dirty logging on");
	b.set(call(0, 0x8000, 0x10000, 0x10000000, log_dirty));
	holds(kvm_has(0, 0x8000, log_dirty), "moved, over itself");
	b.set(call(1, 0x20000, 0x10000, 0x20000000));
	b.set(call(2, 0x30000, 0x10000, 0x30000000));
	holds(!b.changes->pending(), "nothing was collected");

	/* The same while memory is withdrawn, and some is collected */
	b.remove(1);
	b.set(call(1, 0x20000, 0x8000, 0x40000000));
	b.set(call(3, 0x40000, 0x10000, 0x50000000));
	holds(kvm_has(3, 0x40000, 0), "created elsewhere");
	b.set(call(2, 0x30000, 0x10000, 0x30000000, log_dirty));
	holds(kvm_has(2, 0x30000, log_dirty), "dirty logging of another slot");
	b.remove(0);
	holds(b.reserved(0x8000, 0x10000), "another deletion");
	holds(b.reserved(0x20000, 0x10000), "and the first is as it was");
	b.commit();
	same(b.kernel.vm.slots.size(), 3U, "the end");
	same(b.kernel.vm.slots.at({0, 1}).hva, 0x40000000U, "of that one");

	/* A slot that KVM has moves to where memory was taken away: one step, its log with it */
	b.remove(3);
	b.set(call(2, 0x48000, 0x10000, 0x30000000, log_dirty));
	holds(kvm_has(2, 0x48000, log_dirty), "moved");
	holds(!b.changes->pending(), "and the transaction is over");
	same(b.commits_at(moment::whole), 1U, "with it");
}

/** A slot that is partly where memory was taken away, or whose number holds a reservation. */
void test_more_reserved()
{
	bench b;

	b.set(call(7, 0x10000, 0x10000, 0x10000000));
	b.set(call(8, 0x40000, 0x10000, 0x20000000));
	b.remove(7);
	b.remove(8);
	const std::size_t before = b.kernel.batches.size();

	same(b.set(call(9, 0, 0x60000, 0x30000000)), 0, "over both and what is around them");
	same(b.kernel.batches.size(), before + 1, "the rest is reserved at once");
	same(b.kernel.batches.back().size(), 3U, "in three parts");
	holds(b.reserved(0, 0x60000), "all of it");
	for (const auto &entry : b.kernel.batches.back())
		holds(entry.slot > model::max_slot - 3, "under numbers that nobody uses");
	b.set(call(model::max_slot, 0x100000, 0x1000, 0x40000000));
	holds(b.reserved(0, 0x60000), "or moves to, when the VMM wants it");
	holds(b.reserved(0x100000, 0x1000), "for a slot that waits, too");
	b.commit();
	same(b.kernel.vm.slots.size(), 2U, "the end");
	holds(b.kernel.vm.covers(0, 0x60000), "all is there");
	holds(b.kernel.vm.covers(0x100000, 0x1000), "all is there");

	/* The number of a withdrawn slot, used elsewhere: a device's memory moves */
	b.remove(9);
	b.set(call(9, 0x200000, 0x60000, 0x30000000));
	holds(b.reserved(0, 0x60000), "the old place");
	holds(b.reserved(0x200000, 0x60000), "and the new one");
	b.set(call(9, 0x300000, 0x60000, 0x30000000));
	holds(b.reserved(0x300000, 0x60000), "moved on");
	b.commit();
	holds(b.kernel.vm.covers(0x300000, 0x60000), "there it is");
	same(b.kernel.vm.slots.size(), 2U, "and nothing else");

	/* No number is left */
	bench few(1000, 6);

	for (unsigned id = 0; id <= 6; id++)
		few.set(call(id, id * 0x1000ULL, 0x1000, 0x10000000));
	few.remove(5);
	holds(few.reserved(0x5000, 0x1000), "a slot's own number always is");
	same(few.set(call(5, 0xf0000000, 0x1000, 0x10000000)), 0, "elsewhere");
	holds(few.kernel.vm.covers(0xf0000000, 0x1000), "there at once, as KVM does it");
	holds(!few.kernel.vm.covers(0x5000, 0x1000), "with a hole, as KVM has it");
}

/** Without what it takes, memory goes as KVM makes it go. */
void test_no_reservation()
{
	bench b;

	b.set(call(0, 0, 0x10000, 0x10000000));
	b.can_withdraw = false;
	same(b.remove(0), 0, "no vCPU that could wait");
	same(b.kernel.vm.slots.size(), 0U, "gone");
	b.can_withdraw = true;
	b.set(call(0, 0, 0x10000, 0x10000000));
	b.kernel.inaccessible_at = 0;
	same(b.remove(0), 0, "no addresses");
	same(b.kernel.vm.slots.size(), 0U, "gone");
	b.kernel.inaccessible_at = nowhere;
	b.set(call(0, 0, 0x10000, 0x10000000));
	b.kernel.fail_commits = {ENOMEM, ENOMEM, ENOMEM};
	same(b.remove(0), 0, "no memory for the reservation's slot");
	same(b.kernel.vm.slots.size(), 0U, "gone");
	same(b.kernel.begun, b.kernel.ended, "and no vCPU is kept waiting");
	holds(!b.changes->pending(), "nothing is left");
}

void test_undone()
{
	bench b;

	b.set(call(0, 0, 0x10000, 0x10000000));
	b.remove(0);
	b.set(call(0, 0, 0x8000, 0x10000000));
	same(b.remove(0), 0, "delete what is only collected");
	same(b.remove(0), EINVAL, "deleting it twice");
	holds(b.reserved(0, 0x10000), "it is as before");
	b.set(call(5, 0, 0x8000, 0x10000000));
	same(b.remove(5), 0, "the same by another number");
	b.commit();
	same(b.kernel.batches.back().size(), 1U, "only the reservation goes");
	same(b.kernel.vm.slots.size(), 0U, "nothing is left");
}

void test_errors()
{
	bench b;

	same(b.remove(3), EINVAL, "KVM says EINVAL to deleting a missing slot");
	same(b.set(call(0, 1, 0x1000, 0)), EINVAL, "gpa not aligned");
	same(b.set(call(0, 0, 0x1001, 0)), EINVAL, "size not aligned");
	same(b.set(call(0, 0, 0x1000, 1)), EINVAL, "hva not aligned");
	same(b.set(call(2U << 16, 0, 0x1000, 0)), EINVAL, "no such address space");
	same(b.set(call(model::max_slot + 1, 0, 0x1000, 0)), EINVAL, "slot id too high");
	same(b.set(call(0, ~0xfffULL, 0x2000, 0)), EINVAL, "wraps");
	same(b.set(call(0, 0, 1ULL << 43, 0)), EINVAL, "2^31 pages");
	same(b.set(call(0, test::guest_end, 0x1000, 0)), EINVAL, "only the kernel knows: too high");
	same(b.set(call(0, model::internal.gpa, 0x1000, 0)), EEXIST, "only the kernel knows: APIC");
	holds(!b.changes->pending(), "nothing of that was collected");
	same(b.counters.changes.load(), 0U, "nor counted");

	b.set(call(0, 0, 0x10000, 0x10000000));
	b.set(call(1, 0x20000, 0x10000, 0x20000000, log_dirty));
	same(b.set(call(0, 0, 0x8000, 0x10000000)), EINVAL, "another size without deleting first");
	same(b.set(call(0, 0, 0x10000, 0x11000000)), EINVAL, "another hva");
	same(b.set(call(0, 0, 0x10000, 0x10000000, readonly)), EINVAL, "READONLY");
	same(b.set(call(0, 0x18000, 0x10000, 0x10000000)), EEXIST, "moved over another");
	same(b.set(call(2, 0x2f000, 0x1000, 0x30000000)), EEXIST, "created over another");
	same(b.set(call(1U << 16, 0x2f000, 0x1000, 0x30000000)), 0, "not in another address space");
	same(b.set(call(0, 0, 0x10000, 0x10000000)), 0, "no change");
	same(b.set(call(1, 0x20000, 0x10000, 0x20000000)), 0, "dirty logging off");
	same(b.set(call(0, 0x8000, 0x10000, 0x10000000)), 0, "moved over itself");

	/* The hole of a transaction is there for its own calls */
	b.remove(1);
	same(b.set(call(2, 0x20000, 0x4000, 0x30000000)), 0, "in the place of a deleted slot");
	same(b.set(call(1, 0x22000, 0x4000, 0x30000000)), EEXIST, "overlaps what took it");
	b.kernel.fail_checks = ENOMEM;
	same(b.set(call(1, 0x24000, 0x4000, 0x30000000)), ENOMEM, "errors of the check");
	same(b.set(call(2, 0x20000, 0x4000, 0x30000000, log_dirty)), ENOMEM, "of a change, too");
	b.kernel.fail_checks = 0;
	b.commit();
	same(b.kernel.batches.back().size(), 2U, "failed calls left the batch as it was");
	same(b.kernel.vm.slots.at({0, 2}).flags, 0U, "and its entries");
	holds(!b.kernel.vm.slots.contains({0, 1}), "slot 1 is gone");
	same(b.passed, 0, "KVM was never asked");
}

void test_passed_on()
{
	constexpr std::uint32_t guest_memfd = 1U << 2;
	bench b;

	b.set(call(0, 0, 0x10000, 0x10000000));
	b.remove(0);
	same(b.set(call(1, 0x20000, 0x1000, 0x20000000, guest_memfd)), EINVAL, "KVM's answer");
	same(b.passed, 1, "asked for it");
	holds(!b.changes->pending(), "what came before went first");
	same(b.commits_at(moment::ioctl), 1U, "as a batch");

	int err = b.changes->set_region(b.kernel, call(1, 0x20000, 0x1000, 0x20000000, guest_memfd),
					{true, true}, [] { return 0; });
	same(err, 0, "a KVM that knows the flag");
	same(b.remove(1), EINVAL, "the model has no such slot");
	same(b.passed, 2, "that slot is KVM's from then on");
	err = b.changes->set_region(b.kernel, call(1, 0, 0, 0), {true, true}, [] { return 0; });
	same(err, 0, "deleted by KVM");
	same(b.set(call(1, 0x20000, 0x1000, 0x20000000)), 0, "created again without it");
	same(b.passed, 2, "and not passed on");

	b.kernel.fail_commits = {EOPNOTSUPP};
	same(b.set(call(2, 0x30000, 0x1000, 0x30000000)), 0, "what the module refuses, KVM may do");
	same(b.passed, 3, "and is asked");
	b.kernel.fail_commits = {EBADF, EBADF};
	same(b.remove(2), 0, "no device any more");
	same(b.passed, 4, "KVM is asked");
	holds(!b.kernel.vm.slots.contains({0, 2}), "and did it");
	b.remove(1);
	b.kernel.fail_checks = EBADF;
	same(b.set(call(1, 0x20000, 0x800000, 0x20000000)), 0,
	     "the same while memory is withdrawn");
	same(b.kernel.vm.slots.size(), 1U, "KVM did it");
	same(b.kernel.vm.slots.at({0, 1}).size, 0x800000U, "and nothing is reserved");
	same(b.counters.passed.load(), 7U, "all were counted");
}

void test_failed_commit()
{
	bench b;

	b.kernel.fail_commits = {EBUSY, EBUSY};
	b.set(call(0, 0, 0x10000, 0x10000000));
	same(b.kernel.pauses, 2, "busy: waits and tries again");
	same(b.counters.commits.load(), 1U, "and commits");
	same(b.counters.failed.load(), 0U, "which is no failure");

	b.remove(0);
	b.set(call(0, 0, 0x8000, 0x10000000));
	b.set(call(1, 0x8000, 0x8000, 0x20000000));
	b.kernel.fail_commits = {EBUSY, EBUSY, EBUSY};
	b.commit();
	same(b.counters.failed.load(), 1U, "busy for good");
	same(b.kernel.told_failed, 1, "which is said");
	same(b.kernel.singles.size(), 3U, "the calls are made one by one");
	same(b.kernel.singles[0].memory_size, 0U, "what has to go first");
	same(b.kernel.singles[1].slot, 0U, "create");
	same(b.kernel.singles[2].slot, 1U, "create");
	holds(b.kernel.vm.covers(0, 0x10000), "nothing is lost");
	holds(!b.reserved(0, 0x1000), "nor withheld");
	same(b.counters.lost.load(), 0U, "nothing is lost");
	holds(!b.changes->pending(), "and nothing is left");
	same(b.kernel.begun, b.kernel.ended, "nobody waits");

	b.remove(0);
	b.set(call(2, 0, 0x1000, 0x30000000));
	b.kernel.fail_commits = {EIO};
	b.kernel.vm.slots.erase({0, 0});
	b.kernel.vm.slots[{0, 9}] = {0, 0x1000, 0, 0};
	b.commit();
	same(b.kernel.pauses, 4, "an error that stays is not tried again");
	same(b.counters.lost.load(), 2U, "KVM refused the calls");
	same(b.kernel.told_lost, 2, "which is said");

	bench other;

	other.kernel.fail_commits = {EBUSY, EBUSY, EBUSY};
	same(other.set(call(9, 0x52000, 0x1000, 0)), 0, "busy for good: KVM does it");
	same(other.passed, 1, "when asked");
	same(other.kernel.told_failed, 1, "which is said");
	same(other.counters.failed.load(), 1U, "and counted");
	other.kernel.fail_commits = {ENOMEM, ENOMEM, ENOMEM};
	same(other.set(call(8, 0x53000, 0x1000, 0x1000)), ENOMEM, "as KVM would say");
	same(other.kernel.vm.slots.size(), 1U, "and nothing has changed");
}

void test_full()
{
	bench b(4);
	const auto page_slot = [](unsigned i, std::uint32_t flags = 0) {
		return call(i, i * 0x1000ULL, 0x1000, 0x10000000 + i * 0x1000ULL, flags);
	};

	for (unsigned i = 0; i < 10; i++)
		same(b.set(page_slot(i)), 0, "create");
	for (unsigned i = 0; i < 10; i++)
		same(b.remove(i), 0, "delete");
	same(b.commits_at(moment::full), 2U, "two full batches");
	b.commit();
	same(b.kernel.vm.slots.size(), 0U, "and the rest");

	/* A slot that is in the batch already needs no room */
	for (unsigned i = 0; i < 4; i++)
		b.set(page_slot(i));
	for (unsigned i = 0; i < 4; i++)
		b.remove(i);
	for (unsigned i = 0; i < 4; i++)
		b.set(page_slot(i, log_dirty));
	same(b.commits_at(moment::full), 2U, "a full batch can still change");
	same(b.set(call(7, 0x100000, 0x1000, 0x10000000)), 0, "and nothing else needs room");
	b.set(page_slot(9));
	b.commit();

	b.remove(0);
	b.remove(1);
	b.remove(2);
	same(b.set(call(0, 0, 0x6000, 0x10000000)), EEXIST, "over the next slot");
	b.remove(3);
	same(b.set(call(0, 0, 0x8000, 0x10000000)), 0, "more than can be reserved");
	same(b.commits_at(moment::full), 3U, "ends the transaction");
	holds(b.kernel.vm.covers(0, 0x8000), "and is there");
}

void test_deadline()
{
	bench b;

	for (unsigned i = 0; i < 3; i++)
		b.set(call(i, i * 0x1000ULL, 0x1000, 0x10000000 + i * 0x1000ULL));
	same(b.changes->deadline(), 0U, "nothing, no deadline");
	b.remove(0);

	const std::uint64_t relaxed = b.changes->deadline();

	same(relaxed, b.kernel.clock + b.changes->patience_locked, "a mutex holder has time");
	b.kernel.clock += 1000;
	b.remove(1);
	same(b.changes->deadline(), relaxed + 1010, "from the last call on, without its commit");
	b.remove(2, false);
	same(b.changes->deadline(), relaxed + 1010, "others do not take it away");
	b.commit();
	b.set(call(3, 0x3000, 0x1000, 0x10003000));
	b.remove(3, false);
	same(b.changes->deadline(), b.kernel.clock + b.changes->patience, "but have less");

	const std::uint64_t number = b.changes->number();

	b.commit(moment::deadline);
	same(b.changes->deadline(), 0U, "done");
	holds(b.changes->number() != number, "the next batch is another");
}

void test_collected()
{
	bench b;

	b.set(call(0, 0, 0x10000, 0x10000000, log_dirty));
	holds(!b.changes->is_collected(0), "in KVM");
	holds(!b.changes->is_collected(1), "unknown");
	holds(!b.changes->is_collected(1U << 16), "another address space");
	holds(!b.changes->is_collected(~0U), "nonsense");
	b.remove(0);
	holds(!b.changes->is_collected(0), "withdrawn: KVM has no log of it, which is right");
	b.set(call(0, 0, 0x8000, 0x10000000, log_dirty));
	holds(b.changes->is_collected(0), "created again");
	b.commit();
	holds(!b.changes->is_collected(0), "and in KVM");
}

/** Who holds no mutex ends the transaction with the last piece of what was taken away. */
void test_no_mutex()
{
	bench b;
	const auto waits = [&b](const kvm_userspace_memory_region &one) {
		same(b.set(one, false), 0, "call");
		return b.changes->pending();
	};

	holds(!waits(call(0, 0x4000, 0x10000, 0x10000000)), "create");
	holds(waits(call(0, 0, 0, 0)), "delete");
	holds(waits(call(1, 0x4000, 0x4000, 0x10000000)), "the first part of it");
	holds(waits(call(3, 0xc000, 0x8000, 0x10008000)), "the last part");
	holds(waits(call(4, 0x30000, 0x4000, 0x40000000)), "something else");
	holds(waits(call(1U << 16, 0x8000, 0x4000, 0x40000000)), "another address space");
	same(b.counters.ns_in_checks.load(), 20U, "what waits was checked");
	holds(!waits(call(2, 0x8000, 0x4000, 0x10004000)), "what was missing");
	same(b.kernel.batches.back().size(), 4U, "all in one batch");
	same(b.commits_at(moment::whole), 1U, "whole");

	holds(waits(call(1, 0, 0, 0)), "delete");
	holds(waits(call(1, 0x3000, 0x4000, 0x50000000)), "too low by a page");
	b.commit();
	holds(waits(call(1, 0, 0, 0)), "delete");
	holds(!waits(call(1, 0x1000, 0x6000, 0x50000000)), "and more in its place");

	const std::size_t before = b.kernel.batches.size();

	b.remove(1, false);
	same(b.set(call(1, 0, 0x8000, 0x50000000), false), 0, "more than was reserved");
	same(b.kernel.batches.size(), before + 2, "that is never reserved, only put there");
	b.remove(1, false);
	same(b.set(call(1, 0x1000, 0x6000, 0x50000000), false), 0, "less");
	b.commit();
	b.remove(1, false);
	b.kernel.fail_commits = {ENOMEM, ENOMEM, ENOMEM};
	same(b.set(call(1, 0x1000, 0x6000, 0x50000000), false), ENOMEM, "as KVM would say");
	holds(b.reserved(0x1000, 0x6000), "and what came before is kept");
	b.commit();
	holds(!b.kernel.vm.slots.contains({0, 1}), "until its time is up");
}

/** True if the kernel has what a VMM has after its calls, or lets the guest wait for it. */
bool is_true(const bench &b, const model &vmm)
{
	for (const auto &[which, one] : b.kernel.vm.slots) {
		const auto wanted = vmm.slots.find(which);

		if (one.hva != nowhere && (wanted == vmm.slots.end() || wanted->second != one))
			return false;
	}
	for (const auto &[which, one] : vmm.slots) {
		const auto found = b.kernel.vm.slots.find(which);

		if ((found == b.kernel.vm.slots.end() || found->second != one) &&
		    !b.reserved(one.gpa, one.size, which.first))
			return false;
	}
	return true;
}

/** Random calls: each errno as KVM's, and after each the kernel has what KVM would have. */
void test_against_kvm(unsigned seed)
{
	std::mt19937 random(seed);
	const auto pick = [&random](unsigned n) { return random() % n; };
	bench b(1 + pick(12));
	model sequential;
	unsigned wrong = 0;
	unsigned done = 0;
	std::size_t full = 0;

	for (unsigned step = 0; step < 3000; step++) {
		const unsigned slot = pick(6) | (pick(4) == 0) << 16;
		const std::uint64_t pages = pick(3) ? pick(4) : 0;
		auto one = call(slot, pick(12) * 0x1000ULL, pages * 0x1000,
				0x10000000 + pick(3) * 0x100000ULL, pick(8) ? pick(4) : 4);

		if (pick(50) == 0)
			one.guest_phys_addr = model::internal.gpa;
		if (pick(50) == 0)
			one.guest_phys_addr += 0x800;

		/* More often than chance has it: the slot as it is, but for its place or flags */
		const auto now = sequential.slots.find({slot >> 16, slot & 0xffff});

		if (now != sequential.slots.end() && pick(3) == 0) {
			one.memory_size = now->second.size;
			one.userspace_addr = now->second.hva;
		}

		const bool locked = pick(4) != 0;
		const model before = b.kernel.vm;

		b.can_withdraw = pick(20) != 0;

		const int expected = sequential.set_region(one);
		const int got = b.set(one, locked);

		wrong += got != expected;
		done += got == 0;
		wrong += !is_true(b, sequential);
		/* A deletion alone makes no hole */
		for (std::uint64_t gpa = 0; got == 0 && !one.memory_size && b.can_withdraw &&
					    b.changes->pending() && gpa < 0x10000;
		     gpa += 0x1000)
			wrong += before.covers(gpa, 0x1000) && !b.kernel.vm.covers(gpa, 0x1000) &&
				 b.commits_at(moment::full) == full;
		full = b.commits_at(moment::full);
		wrong += (b.kernel.begun - b.kernel.ended) != b.changes->pending();
		wrong += (b.changes->deadline() != 0) != b.changes->pending();
		if (pick(5) == 0) {
			b.commit();
			wrong += !(b.kernel.vm == sequential);
		}
	}
	same(wrong, 0U, "calls that differ from KVM, seed " + std::to_string(seed));
	holds(done > 500, "enough of them succeeded, seed " + std::to_string(seed));
	same(b.counters.lost.load(), 0U, "calls lost");
	same(b.counters.failed.load(), 0U, "batches failed");
}

void test_held_locks()
{
	held_locks held;
	int big = 0;
	int small = 0;

	holds(held.none(), "none at first");
	held.took(&big, false);
	held.took(&small, false);
	holds(!held.is_last(&small), "the big one is still held");
	held.released(&small);
	holds(held.is_last(&big), "now it is the last");
	held.released(&big);
	holds(held.none(), "none");
	held.released(&big);
	holds(held.none(), "one released twice, or by another thread");

	held.took(&big, true);
	held.took(&big, true);
	holds(!held.is_last(&big), "a recursive one, held twice");
	held.released(&big);
	holds(held.is_last(&big), "held once");
	held.released(&big);

	held.took(&big, false);
	held.took(&big, false);
	holds(held.is_last(&big), "another thread released it in between");
	held.forget(&big);
	holds(held.none(), "destroyed");

	std::array<char, 100> many{};

	for (const char &one : many)
		held.took(&one, false);
	for (const char &one : many)
		held.released(&one);
	holds(held.none(), "more than there is room for");
}

} // namespace

int main()
{
	test_transaction();
	test_at_once();
	test_more_reserved();
	test_no_reservation();
	test_undone();
	test_errors();
	test_passed_on();
	test_failed_commit();
	test_full();
	test_deadline();
	test_no_mutex();
	test_collected();
	for (unsigned seed = 1; seed <= 50; seed++)
		test_against_kvm(seed);
	test_held_locks();
	return test::report("test_collector");
}
