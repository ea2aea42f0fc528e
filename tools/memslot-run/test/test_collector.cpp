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

struct fake_kernel {
	model vm;
	std::uint64_t clock = 1;
	/** what the next commits that are no test return, instead of being done */
	std::vector<int> fail_commits;
	/** what every test-only commit returns, if it would succeed */
	int fail_checks = 0;
	std::vector<std::vector<memslot_entry>> batches;
	std::vector<kvm_userspace_memory_region> singles;
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
	/** what passed-on calls return, if KVM does not know better */
	int passed = 0;

	explicit bench(std::uint32_t max_entries = 1000)
	{
		changes->start({.max_slot = model::max_slot,
				.max_entries = max_entries,
				.address_spaces = 2,
				.region2 = true},
			       counters);
	}

	int set(const kvm_userspace_memory_region &one, bool locked = true)
	{
		return changes->set_region(kernel, one, locked, [&] {
			passed++;
			return kernel.vm.set_region(one);
		});
	}

	int remove(unsigned slot)
	{
		return set(call(slot, 0, 0, 0));
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
	b.commit();
	same(b.kernel.batches.size(), 1U, "one batch for both");

	same(b.remove(1), 0, "delete");
	same(b.set(call(1, 0xc0000, 0x10000, 0x100c0000)), 0, "its id again, smaller");
	same(b.set(call(2, 0xd0000, 0x30000, 0x20000000, readonly)), 0, "ROM in the rest");
	holds(b.kernel.vm.covers(0xc0000, 0x40000), "nothing has happened yet");
	b.commit();
	same(b.kernel.batches.size(), 2U, "one batch for the transaction");
	same(b.kernel.batches.back().size(), 2U, "delete and create are one replace");
	same(b.counters.changes.load(), 5U, "changes");
	same(b.counters.commits.load(), 2U, "commits");
	same(b.counters.entries.load(), 4U, "entries");
	same(b.counters.fenced.load(), 1U, "fenced, by the reply");
	same(b.counters.parked.load(), 1U, "parked, by the reply");
	same(b.counters.grace_periods.load(), 2U, "grace periods, by the reply");
	same(b.counters.ns_in_commits.load(), 20U, "time in commits");
	same(b.counters.ns_longest_commit.load(), 10U, "longest commit");
	same(b.counters.ns_in_checks.load(), 50U, "time in checks");
	same(b.commits_at(moment::unlock), 2U, "moments");

	b.commit();
	same(b.kernel.batches.size(), 2U, "nothing pending, nothing committed");
}

void test_undone()
{
	bench b;

	b.set(call(0, 0, 0x10000, 0x10000000));
	same(b.remove(0), 0, "delete what is only collected");
	holds(!b.changes->pending(), "nothing is left");
	same(b.changes->deadline(), 0U, "nor has it a deadline");
	same(b.remove(0), EINVAL, "deleting it twice");

	b.set(call(0, 0, 0x10000, 0x10000000));
	b.commit();
	b.remove(0);
	holds(b.changes->pending(), "a deletion is pending");
	b.set(call(0, 0, 0x10000, 0x10000000));
	holds(!b.changes->pending(), "back to what KVM has");

	/* The same with another slot's change around it */
	b.remove(0);
	b.set(call(7, 0x100000, 0x1000, 0x20000000));
	b.set(call(0, 0, 0x10000, 0x10000000));
	b.commit();
	same(b.kernel.batches.back().size(), 1U, "only the other slot");
	same(b.kernel.batches.back()[0].slot, 7U, "only the other slot");
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
	b.commit();

	/* The hole of a transaction is there for its own calls */
	b.remove(1);
	same(b.set(call(2, 0x20000, 0x4000, 0x30000000)), 0, "in the place of a deleted slot");
	same(b.set(call(1, 0x22000, 0x4000, 0x30000000)), EEXIST, "overlaps what took it");
	b.kernel.fail_checks = ENOMEM;
	same(b.set(call(1, 0x24000, 0x4000, 0x30000000)), ENOMEM, "errors of the check");
	same(b.remove(2), ENOMEM, "also when an entry was dropped for it");
	same(b.set(call(2, 0x20000, 0x4000, 0x30000000, log_dirty)), ENOMEM, "or changed");
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
	same(b.set(call(1, 0x20000, 0x1000, 0x20000000, guest_memfd)), EINVAL, "KVM's answer");
	same(b.passed, 1, "asked for it");
	holds(!b.changes->pending(), "what came before went first");
	same(b.commits_at(moment::ioctl), 1U, "as a batch");

	int err = b.changes->set_region(b.kernel, call(1, 0x20000, 0x1000, 0x20000000, guest_memfd),
					true, [] { return 0; });
	same(err, 0, "a KVM that knows the flag");
	same(b.remove(1), EINVAL, "the model has no such slot");
	same(b.passed, 2, "that slot is KVM's from then on");
	err = b.changes->set_region(b.kernel, call(1, 0, 0, 0), true, [] { return 0; });
	same(err, 0, "deleted by KVM");
	same(b.set(call(1, 0x20000, 0x1000, 0x20000000)), 0, "created again without it");
	same(b.passed, 2, "and collected");

	b.kernel.fail_checks = EOPNOTSUPP;
	same(b.set(call(2, 0x30000, 0x1000, 0x30000000)), 0, "what the module refuses, KVM may do");
	same(b.passed, 3, "and is asked");
	b.kernel.fail_checks = EBADF;
	same(b.set(call(2, 0x30000, 0x1000, 0x30000000, log_dirty)), 0, "no device any more");
	same(b.kernel.vm.slots.at({0, 2}).flags, log_dirty, "KVM did it");
	same(b.counters.passed.load(), 6U, "all were counted");
}

void test_failed_commit()
{
	bench b;

	b.set(call(0, 0, 0x10000, 0x10000000));
	b.kernel.fail_commits = {EBUSY, EBUSY};
	b.commit();
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
	same(b.kernel.singles[0].memory_size, 0U, "in their order: delete");
	same(b.kernel.singles[1].slot, 0U, "create");
	same(b.kernel.singles[2].slot, 1U, "create");
	holds(b.kernel.vm.covers(0, 0x10000), "nothing is lost");
	same(b.counters.lost.load(), 0U, "nothing is lost");
	holds(!b.changes->pending(), "and nothing is left");

	b.set(call(2, 0x100000, 0x1000, 0x30000000));
	b.kernel.fail_commits = {EIO};
	b.kernel.vm.slots[{0, 9}] = {0x100000, 0x1000, 0, 0};
	b.commit();
	same(b.kernel.pauses, 4, "an error that stays is not tried again");
	same(b.counters.lost.load(), 1U, "KVM refused the call");
	same(b.kernel.told_lost, 1, "which is said");
}

void test_full()
{
	bench b(4);

	for (unsigned i = 0; i < 10; i++)
		same(b.set(call(i, i * 0x1000ULL, 0x1000, 0x10000000 + i * 0x1000ULL)), 0,
		     "create");
	same(b.kernel.batches.size(), 2U, "two full batches");
	same(b.commits_at(moment::full), 2U, "because they were full");
	b.commit();
	same(b.kernel.batches.size(), 3U, "and the rest");

	/* A slot that is in the batch already needs no room */
	for (unsigned i = 0; i < 4; i++)
		b.set(call(i, i * 0x1000ULL, 0x1000, 0x10000000 + i * 0x1000ULL, log_dirty));
	b.set(call(0, 0, 0x1000, 0x10000000));
	same(b.commits_at(moment::full), 2U, "a full batch can still change");

	bench log;

	for (unsigned i = 0; i < log.changes->max_calls + 3; i++)
		log.set(call(0, 0x1000 * (1ULL + i), 0x1000, 0x10000000));
	same(log.commits_at(moment::full), 1U, "so many calls for one slot");
}

void test_deadline()
{
	bench b;

	b.set(call(2, 0x2000, 0x1000, 0x10002000));
	b.commit();
	same(b.changes->deadline(), 0U, "nothing, no deadline");
	b.set(call(0, 0, 0x1000, 0x10000000), true);

	const std::uint64_t relaxed = b.changes->deadline();

	same(relaxed, b.kernel.clock + b.changes->patience_locked, "a mutex holder has time");
	b.kernel.clock += 1000;
	b.set(call(1, 0x1000, 0x1000, 0x10001000), true);
	same(b.changes->deadline(), relaxed, "from the first change on");
	b.set(call(2, 0, 0, 0), false);
	same(b.changes->deadline(), b.kernel.clock + b.changes->patience, "others have less");
	b.kernel.clock += 1000;
	b.set(call(3, 0x3000, 0x1000, 0x10003000), true);
	same(b.changes->deadline(), b.kernel.clock - 1010 + b.changes->patience,
	     "the earliest counts");

	const std::uint64_t number = b.changes->number();

	b.commit(moment::deadline);
	same(b.changes->deadline(), 0U, "done");
	holds(b.changes->number() != number, "the next batch is another");
}

void test_memory()
{
	bench b;

	b.set(call(0, 0, 0x10000, 0x10000000));
	holds(b.changes->uses(0x10000000, 1), "first byte of a created slot");
	holds(b.changes->uses(0x1000ffff, 1), "last byte");
	holds(!b.changes->uses(0x10010000, 0x1000), "behind it");
	holds(!b.changes->uses(0xffff000, 0x1000), "before it");
	holds(b.changes->uses(0, ~0ULL), "everything");
	b.commit();
	holds(!b.changes->uses(0x10000000, 1), "not collected any more");
	b.remove(0);
	holds(b.changes->uses(0x10000000, 1), "KVM still has the deleted slot");
	b.set(call(0, 0, 0x10000, 0x20000000));
	holds(b.changes->uses(0x10000000, 1), "and the replaced one");
	holds(b.changes->uses(0x20000000, 1), "and will have the new one");
}

void test_dirty_log()
{
	bench b;

	b.set(call(0, 0, 0x10000, 0x10000000, log_dirty));
	holds(b.changes->log_needs_commit(0), "created");
	holds(!b.changes->log_needs_commit(1), "unknown");
	holds(!b.changes->log_needs_commit(1U << 16), "another address space");
	holds(!b.changes->log_needs_commit(~0U), "nonsense");
	b.commit();
	holds(!b.changes->log_needs_commit(0), "in KVM");
	b.remove(0);
	holds(!b.changes->log_needs_commit(0), "about to go: KVM still has it");
	b.set(call(0, 0, 0x8000, 0x10000000, log_dirty));
	holds(b.changes->log_needs_commit(0), "replaced: the old bitmap has another size");
	b.commit();
	b.set(call(0, 0, 0x8000, 0x10000000));
	holds(!b.changes->log_needs_commit(0), "logging about to stop: KVM still has the bitmap");
	b.commit();
	b.set(call(0, 0, 0x8000, 0x10000000, log_dirty));
	holds(b.changes->log_needs_commit(0), "logging about to start");
}

/** Who holds no mutex finds each call done, as long as no hole is left that it may yet fill. */
void test_no_mutex()
{
	bench b;
	const auto waits = [&b](const kvm_userspace_memory_region &one) {
		same(b.set(one, false), 0, "call");
		return b.changes->pending();
	};

	holds(!waits(call(0, 0, 0x10000, 0x10000000)), "create");
	holds(!waits(call(0, 0, 0x10000, 0x10000000, log_dirty)), "dirty logging on");
	holds(!waits(call(0, 0x4000, 0x10000, 0x10000000, log_dirty)), "move");
	same(b.commits_at(moment::whole), 3U, "each at once");
	same(b.counters.changes.load(), 3U, "and counted");
	same(b.counters.ns_in_checks.load(), 0U, "without a check first");

	holds(waits(call(0, 0, 0, 0)), "delete");
	holds(waits(call(1, 0x4000, 0x4000, 0x10000000)), "the first part of it");
	holds(waits(call(3, 0xc000, 0x8000, 0x10008000)), "the last part");
	holds(waits(call(4, 0x30000, 0x4000, 0x40000000)), "something else");
	holds(waits(call(1U << 16, 0x8000, 0x4000, 0x40000000)), "another address space");
	holds(!waits(call(2, 0x8000, 0x4000, 0x10004000)), "what was missing");
	same(b.kernel.batches.back().size(), 6U, "all in one batch");

	holds(waits(call(1, 0, 0, 0)), "delete");
	holds(waits(call(1, 0x3000, 0x4000, 0x50000000)), "too low by a page");
	b.commit();
	holds(waits(call(1, 0, 0, 0)), "delete");
	holds(!waits(call(1, 0x1000, 0x6000, 0x50000000)), "and more in its place");

	b.kernel.fail_checks = EINVAL;
	same(b.set(call(7, 0x50000, 0x1000, 0), false), 0, "a commit needs no check");
	b.kernel.fail_checks = 0;
	same(b.set(call(8, model::internal.gpa, 0x1000, 0), false), EEXIST, "nor does its error");
	same(b.set(call(8, 0x51000, 0x1000, 0), false), 0, "which left nothing behind");

	b.kernel.fail_commits = {EBUSY, EBUSY, EBUSY};
	same(b.set(call(9, 0x52000, 0x1000, 0), false), 0, "busy for good: KVM does it");
	same(b.passed, 1, "when asked");
	same(b.kernel.told_failed, 1, "which is said");
	same(b.counters.failed.load(), 1U, "and counted");
	b.kernel.fail_commits = {ENOMEM, ENOMEM, ENOMEM};
	same(b.set(call(9, 0, 0, 0), true), 0, "delete");
	same(b.set(call(9, 0x52000, 0x1000, 0x1000), false), ENOMEM, "as KVM would say");
	b.commit();
	holds(!b.kernel.vm.slots.contains({0, 9}), "what came before was kept");
}

/** Random calls: each errno as KVM's, each commit a whole layout that KVM would have had. */
void test_against_kvm(unsigned seed)
{
	std::mt19937 random(seed);
	const auto pick = [&random](unsigned n) { return random() % n; };
	bench b(1 + pick(12));
	model sequential;
	unsigned wrong = 0;
	unsigned collected = 0;

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
		const model kernel_before = b.kernel.vm;
		const model kvm_before = sequential;
		const int expected = sequential.set_region(one);
		const int got = b.set(one, locked);

		wrong += got != expected;
		collected += got == 0;
		/* The kernel has what KVM would have now, or had before, or nothing has changed */
		wrong += !(b.kernel.vm == kernel_before || b.kernel.vm == kvm_before ||
			   b.kernel.vm == sequential);
		if (pick(5) == 0) {
			b.commit();
			wrong += !(b.kernel.vm == sequential);
		}
	}
	same(wrong, 0U, "calls that differ from KVM, seed " + std::to_string(seed));
	holds(collected > 500, "enough of them succeeded, seed " + std::to_string(seed));
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
	test_undone();
	test_errors();
	test_passed_on();
	test_failed_commit();
	test_full();
	test_deadline();
	test_no_mutex();
	test_memory();
	test_dirty_log();
	for (unsigned seed = 1; seed <= 50; seed++)
		test_against_kvm(seed);
	test_held_locks();
	return test::report("test_collector");
}
