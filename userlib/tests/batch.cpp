// SPDX-License-Identifier: MIT
/* The parts of memslot.hpp that need no device. */
#include "expect.hpp"

#include <memslot.hpp>

#include <cstdlib>
#include <random>
#include <set>
#include <type_traits>

namespace {

memslot::region at(std::uint32_t slot, std::uint64_t gpa, std::uint32_t address_space = 0)
{
	return {
		.slot = slot,
		.address_space = address_space,
		.guest_phys_addr = gpa,
		.memory_size = 0x2000,
		.userspace_addr = &failures,
	};
}

void last_wins()
{
	memslot::batch batch;

	batch.set(at(7, 0x1000)).set(at(3, 0x8000)).set(at(7, 0x4000));
	expect(batch.size() == 2);
	expect(batch.entries()[0].slot == 7);
	expect(batch.entries()[0].guest_phys_addr == 0x4000);
	expect(batch.entries()[1].slot == 3);
}

void remove_after_set()
{
	memslot::batch batch;

	batch.set(at(7, 0x1000)).remove(7);
	expect(batch.size() == 1);
	expect(batch.entries()[0].memory_size == 0);
	expect(batch.entries()[0].userspace_addr == 0);

	batch.set(at(7, 0x3000));
	expect(batch.size() == 1);
	expect(batch.entries()[0].memory_size == 0x2000);
}

void address_spaces_are_apart()
{
	memslot::batch batch;

	batch.set(at(7, 0x1000)).set(at(7, 0x2000, 1)).remove(7, 1);
	expect(batch.size() == 2);
	expect(batch.entries()[0].address_space == 0);
	expect(batch.entries()[0].guest_phys_addr == 0x1000);
	expect(batch.entries()[1].address_space == 1);
	expect(batch.entries()[1].memory_size == 0);
}

void fields_arrive()
{
	memslot::batch batch;
	const int host = 0;

	batch.set({
		.slot = 1,
		.address_space = 1,
		.guest_phys_addr = 0x123456789000,
		.memory_size = 0x8000,
		.userspace_addr = &host,
		.log_dirty_pages = true,
	});
	batch.set({.slot = 2, .memory_size = 0x1000, .readonly = true});

	const memslot_entry &entry = batch.entries()[0];
	expect(entry.slot == 1 && entry.address_space == 1 && entry.reserved == 0);
	expect(entry.guest_phys_addr == 0x123456789000 && entry.memory_size == 0x8000);
	expect(entry.userspace_addr == reinterpret_cast<std::uintptr_t>(&host));
	expect(entry.flags == MEMSLOT_ENTRY_LOG_DIRTY_PAGES);
	expect(batch.entries()[1].flags == MEMSLOT_ENTRY_READONLY);
	expect(entry.dirty_bitmap == 0 && entry.dirty_bitmap_size == 0);
}

void last_dirty_bitmaps()
{
	static_assert(memslot::dirty_bitmap_words(0) == 0);
	static_assert(memslot::dirty_bitmap_words(0x1000) == 1);
	static_assert(memslot::dirty_bitmap_words(64 * 0x1000ULL) == 1);
	static_assert(memslot::dirty_bitmap_words(65 * 0x1000ULL) == 2);
	static_assert(memslot::dirty_bitmap_words(((1ULL << 31) - 1) << 12) == 1U << 25);

	memslot::batch batch;
	std::vector<std::uint64_t> first(2), second(3);

	batch.set(at(1, 0x1000), first).remove(2, second).remove(3, second, 1).remove(4);
	const auto wants = [&batch](std::size_t at, const std::vector<std::uint64_t> &words) {
		const memslot_entry &entry = batch.entries()[at];

		return entry.dirty_bitmap == reinterpret_cast<std::uintptr_t>(words.data()) &&
		       entry.dirty_bitmap_size == 8 * words.size();
	};
	expect(wants(0, first) && wants(1, second) && wants(2, second) && wants(3, {}));
	expect(batch.entries()[0].memory_size == 0x2000);
	expect(batch.entries()[1].slot == 2 && batch.entries()[1].memory_size == 0);
	expect(batch.entries()[2].slot == 3 && batch.entries()[2].address_space == 1);

	/* A forgotten resize() must not read as: no bitmap wanted */
	batch.remove(2, std::span<std::uint64_t>());
	expect(batch.entries()[1].dirty_bitmap != 0 && batch.entries()[1].dirty_bitmap % 8 == 0);
	expect(batch.entries()[1].dirty_bitmap_size == 0);
	batch.remove(2);
	expect(wants(1, {}));
}

void clear_and_reserve()
{
	memslot::batch batch;

	batch.reserve(100);
	batch.set(at(0, 0));

	const memslot_entry *before = batch.entries().data();
	for (std::uint32_t slot = 100; slot-- > 1;)
		batch.set(at(slot, slot * 0x10000ULL));
	expect(batch.entries().data() == before);
	expect(batch.size() == 100);

	batch.clear();
	expect(batch.empty() && batch.entries().empty());
	batch.set(at(1, 0x5000));
	expect(batch.size() == 1 && batch.entries().data() == before);
}

/* Against the obvious implementation: search from the start, append what is not there */
void random_batches()
{
	std::minstd_rand random(1);
	memslot::batch batch;
	std::vector<memslot::region> model;

	for (std::uint64_t i = 1; i < 20000; i++) {
		auto want = at(static_cast<std::uint32_t>(random() % 1000), i * 0x1000,
			       static_cast<std::uint32_t>(random() % 2));

		if (random() % 4 == 0) {
			want.memory_size = 0;
			batch.remove(want.slot, want.address_space);
		} else {
			batch.set(want);
		}

		const auto found = std::ranges::find_if(model, [&](const memslot::region &old) {
			return old.slot == want.slot && old.address_space == want.address_space;
		});
		if (found == model.end())
			model.push_back(want);
		else
			*found = want;
	}
	expect(std::ranges::equal(batch.entries(), model,
				  [](const memslot_entry &entry, const memslot::region &want) {
					  return entry.slot == want.slot &&
						 entry.address_space == want.address_space &&
						 entry.memory_size == want.memory_size &&
						 (entry.memory_size == 0 ||
						  entry.guest_phys_addr == want.guest_phys_addr);
				  }));
}

void errors_have_words()
{
	const memslot::failure overlap{
		.op = memslot::operation::commit,
		.errnum = EEXIST,
		.reason = MEMSLOT_REASON_OVERLAP_SLOT,
		.index = 3,
	};
	const memslot::error why(overlap);
	const std::string_view text = why.what();

	expect(why.code() == std::errc::file_exists);
	expect(why.index() == 3U);
	expect(why.reason() == MEMSLOT_REASON_OVERLAP_SLOT);
	expect(text.starts_with("memslot: commit: entry 3: "));
	expect(text.find(why.reason_words()) != text.npos);
	expect(text.find("File exists") != text.npos);

	const memslot::error none({.op = memslot::operation::reset, .errnum = EIO});
	expect(!none.index());
	expect(std::string_view(none.what()) == "memslot: reset: Input/output error");

	std::set<std::string_view> seen;
	for (std::uint32_t reason = 0; reason <= MEMSLOT_REASON_NO_ROOM; reason++) {
		const auto words = memslot::words(memslot::to_reason(reason));

		expect(words.size() > 5 && !words.ends_with('.'));
		expect(seen.insert(words).second);
	}
	/* What only a newer module knows is one that the enum can hold */
	static_assert(std::uint32_t{memslot::to_reason(200)} < 64);
	static_assert(std::uint32_t{memslot::to_strategy(200)} < 4);
	static_assert(std::uint32_t{memslot::to_park_cause(200)} < 8);
	static_assert(memslot::to_reason(MEMSLOT_REASON_NO_ROOM) == MEMSLOT_REASON_NO_ROOM);
	static_assert(memslot::words(memslot::to_reason(200)).starts_with("a reason that only"));
	static_assert(memslot::to_strategy(MEMSLOT_STRATEGY_PARK) == MEMSLOT_STRATEGY_PARK);
	static_assert(memslot::words(memslot::to_strategy(~0U)) == "unknown");
	static_assert(memslot::to_park_cause(MEMSLOT_PARK_NESTED) == MEMSLOT_PARK_NESTED);
	static_assert(memslot::words(memslot::to_park_cause(8)) == "unknown");
	for (const memslot::feature each : memslot::features)
		expect(seen.insert(memslot::words(each)).second);
	for (std::uint32_t cause = 0; cause <= MEMSLOT_PARK_DIRTY_LOG; cause++)
		expect(seen.insert(memslot::words(memslot::to_park_cause(cause))).second);
	for (std::uint32_t strategy = 0; strategy <= MEMSLOT_STRATEGY_PARK; strategy++)
		expect(seen.insert(memslot::words(memslot::to_strategy(strategy))).second);
	expect(!seen.contains("unknown"));
}

void results()
{
	memslot::result<int> good(5);
	const memslot::result<int> constant(6);
	const memslot::failure why{.op = memslot::operation::stage, .errnum = EINVAL};
	const memslot::result<int> bad(why);

	expect(good && *good == 5 && good.value() == 5);
	expect(constant && *constant == 6 && constant.value() == 6);
	good.value() = 7;
	expect(*good == 7);
	expect(!bad && bad.error().errnum == EINVAL);
	try {
		(void)bad.value();
		expect(false);
	} catch (const memslot::error &thrown) {
		expect(thrown.code().value() == EINVAL);
	}
	expect(memslot::result<void>().has_value());
	expect(!memslot::result<void>(why).has_value());
}

/* No module is needed to be told that there is none */
void devices()
{
	static_assert(!std::is_copy_constructible_v<memslot::device>);
	static_assert(!std::is_copy_assignable_v<memslot::device>);
	static_assert(std::is_nothrow_move_constructible_v<memslot::device>);
	static_assert(std::is_nothrow_move_assignable_v<memslot::device>);
	static_assert(noexcept(std::declval<memslot::device &>().try_commit({})));
	static_assert(noexcept(
		std::declval<memslot::device &>().try_query(std::declval<memslot::layout &>())));

	const auto missing = memslot::device::try_open("/nonexistent/memslot");
	expect(!missing && missing.error().errnum == ENOENT);
	expect(missing.error().message().find("modprobe") != std::string::npos);

	auto wrong = memslot::device::try_open("/dev/null");
	expect(wrong.has_value());
	const int fd = wrong->fd();
	memslot::device moved = *std::move(wrong);
	/* NOLINTNEXTLINE(bugprone-use-after-move): nothing may be left to close twice */
	expect(moved.fd() == fd && wrong->fd() == -1);
	memslot::device given_up = memslot::device::try_open("/dev/null").value();
	const int released = given_up.release();
	expect(given_up.fd() == -1 && fcntl(released, F_GETFD) == FD_CLOEXEC);
	close(released);
	const auto info = moved.try_info();
	expect(!info && info.error().errnum == ENOTTY);
	const auto commit = moved.try_commit({});
	expect(!commit && commit.error().errnum == ENOTTY &&
	       commit.error().index == MEMSLOT_NO_ENTRY);
	expect(moved.try_reset().error().errnum == ENOTTY);
	expect(moved.try_stage({}).error().errnum == ENOTTY);
	expect(moved.try_bind(-1).error().errnum == ENOTTY);
	memslot::layout now;
	const auto query = moved.try_query(now);
	expect(!query && query.error().op == memslot::operation::query &&
	       query.error().errnum == ENOTTY);

	moved = memslot::device();
	expect(fcntl(fd, F_GETFD) == -1 && errno == EBADF);
}

} // namespace

int main()
{
	last_wins();
	remove_after_set();
	address_spaces_are_apart();
	fields_arrive();
	last_dirty_bitmaps();
	clear_and_reserve();
	random_batches();
	errors_have_words();
	results();
	devices();
	return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
