// SPDX-License-Identifier: MIT
/* What memslot.hpp says to the kernel and what it makes of the answer, with a kernel that is fake.
 */
#include "expect.hpp"

#include <memslot.hpp>

#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <functional>

namespace {

/* What the fake answers to the next calls: 0 or an errno; it may change the argument */
std::function<int(unsigned long request, void *argument)> answer;

std::size_t allocations;
/* How many allocations succeed before memory runs out */
std::size_t memory_left = SIZE_MAX;

} // namespace

/* The header's calls end here: a program's own function comes before the C library's */
extern "C" int ioctl(int, unsigned long request, ...) noexcept
{
	std::va_list arguments;

	va_start(arguments, request);
	const int err = answer(request, va_arg(arguments, void *));
	va_end(arguments);
	errno = err;
	return err ? -1 : 0;
}

void *operator new(std::size_t bytes)
{
	void *memory = memory_left ? std::malloc(bytes ? bytes : 1) : nullptr;

	if (!memory)
		throw std::bad_alloc();
	memory_left--;
	allocations++;
	return memory;
}

void operator delete(void *memory) noexcept
{
	std::free(memory);
}

void operator delete(void *memory, std::size_t) noexcept
{
	std::free(memory);
}

namespace {

constexpr std::uint64_t page = 4096;

/* A VM whose address spaces have these slots */
struct fake_vm {
	std::array<std::vector<memslot_entry>, 2> slots;
	std::array<std::uint64_t, 2> generation{};
	unsigned int queries = 0;
	/* slots that somebody adds before each query */
	unsigned int growth = 0;

	void add(unsigned int count, std::uint32_t flags = 0, std::uint32_t address_space = 0)
	{
		for (; count--; generation[address_space]++) {
			const auto n = static_cast<std::uint32_t>(slots[address_space].size());

			slots[address_space].push_back({
				.slot = n + 100,
				.address_space = address_space,
				.flags = flags,
				.reserved = 0,
				.guest_phys_addr = n * 4ULL * page,
				.memory_size = 2 * page,
				.userspace_addr = 0x7f0000000000 + n * page,
				.dirty_bitmap = 0,
				.dirty_bitmap_size = 0,
			});
		}
	}

	int query(memslot_query &arg)
	{
		const auto &now = slots[arg.address_space];
		const auto room = arg.count;

		queries++;
		add(growth);
		expect(arg.size == sizeof(arg) && arg.flags == 0);
		expect(arg.entry_size == sizeof(memslot_entry));
		arg.count = static_cast<std::uint32_t>(now.size());
		arg.generation = generation[arg.address_space];
		if (room < now.size()) {
			arg.reason = MEMSLOT_REASON_NO_ROOM;
			return ENOSPC;
		}
		if (!now.empty())
			std::memcpy(reinterpret_cast<void *>(arg.entries), now.data(),
				    now.size() * sizeof(now[0]));
		return 0;
	}
};

void use(fake_vm &vm)
{
	answer = [&vm](unsigned long request, void *argument) {
		expect(request == MEMSLOT_IOC_QUERY);
		return vm.query(*static_cast<memslot_query *>(argument));
	};
}

void query_empty()
{
	const memslot::device dev;
	memslot::layout now;
	fake_vm vm;

	expect(!now.generation() && now.empty());
	vm.generation[0] = 8;
	use(vm);
	dev.query(now);
	expect(now.empty() && now.begin() == now.end() && now.generation() == 8U);
	expect(!now.find(0) && !now.find_address(0));
}

void query_fields()
{
	memslot::device dev;
	fake_vm vm;

	vm.add(1, MEMSLOT_ENTRY_LOG_DIRTY_PAGES, 1);
	vm.add(1, MEMSLOT_ENTRY_READONLY, 1);
	vm.add(1, MEMSLOT_ENTRY_GUEST_MEMFD, 1);
	vm.generation[1] = 33;
	use(vm);

	const memslot::layout now = dev.query(1);
	expect(now.size() == 3 && now.address_space() == 1 && now.generation() == 33U);
	expect(std::ranges::distance(now) == 3);
	static_assert(std::ranges::contiguous_range<memslot::layout>);

	const memslot::slot_info &first = now[0];
	expect(first.slot == 100 && first.address_space == 1);
	expect(first.guest_phys_addr == 0 && first.memory_size == 2 * page);
	expect(first.userspace_addr == reinterpret_cast<const void *>(0x7f0000000000));
	expect(first.log_dirty_pages && !first.readonly && !first.guest_memfd);
	expect(!now[1].log_dirty_pages && now[1].readonly && !now[1].guest_memfd);
	expect(!now[2].log_dirty_pages && !now[2].readonly && now[2].guest_memfd);

	expect(now.find(101) == &now[1] && !now.find(1));
	expect(now.find_address(0) == &now[0]);
	expect(now.find_address(2 * page - 1) == &now[0]);
	expect(!now.find_address(2 * page));
	expect(!now.find_address(4 * page - 1));
	expect(now.find_address(4 * page) == &now[1]);
	expect(now.find_address(10 * page - 1) == &now[2]);
	expect(!now.find_address(10 * page));
	expect(!now.find_address(~std::uint64_t{0}));

	/* What was queried can be wanted */
	memslot::batch batch;
	batch.set(now[1]);
	expect(batch.entries()[0].flags == MEMSLOT_ENTRY_READONLY);
	expect(batch.entries()[0].guest_phys_addr == 4 * page);
}

void query_makes_room()
{
	const memslot::device dev;
	memslot::layout now;
	fake_vm vm;

	vm.add(500);
	use(vm);
	dev.query(now);
	expect(now.size() == 500 && vm.queries == 2);
	expect(now[499].slot == 599);

	/* From now on there is room */
	vm.add(1);
	const std::size_t before = allocations;
	dev.query(now);
	expect(now.size() == 501 && vm.queries == 3);
	expect(allocations == before);

	memslot::layout reserved;
	reserved.reserve(501);
	vm.queries = 0;
	dev.query(reserved);
	expect(reserved.size() == 501 && vm.queries == 1);

	/* Somebody who adds slots all the time, but fewer than the room beyond */
	memslot::layout chased;
	vm.queries = 0;
	vm.growth = 3;
	dev.query(chased);
	expect(chased.size() == 507 && vm.queries == 2);
}

void query_into_a_copy()
{
	const memslot::device dev;
	memslot::layout now;
	fake_vm vm;

	now.reserve(100);
	use(vm);
	dev.query(now);
	/* The copy has no room */
	memslot::layout copy = now;
	vm.add(50);
	memory_left = 0;
	const auto done = dev.try_query(copy);
	memory_left = SIZE_MAX;
	expect(!done && done.error().errnum == ENOMEM);
	expect(copy.empty() && copy.generation() == 0U);
	dev.query(copy);
	expect(copy.size() == 50 && now.empty());

	/* What was moved away is no longer queried, and can be again */
	const memslot::layout moved = std::move(copy);
	/* NOLINTBEGIN(*-use-after-move,clang-analyzer-cplusplus.Move): promised */
	expect(moved.size() == 50 && moved.generation() == 50U);
	expect(copy.empty() && !copy.generation());
	now = moved;
	expect(now.size() == 50 && now.generation() == 50U);
	copy = std::move(now);
	expect(copy.size() == 50 && copy.generation() == 50U);
	expect(now.empty() && !now.generation());
	dev.query(now);
	expect(now.size() == 50);
	/* NOLINTEND(*-use-after-move,clang-analyzer-cplusplus.Move) */
}

void query_gives_up()
{
	const memslot::device dev;
	memslot::layout now;
	fake_vm vm;

	vm.add(2);
	use(vm);
	dev.query(now);

	/* However much room there is, there are more slots */
	unsigned int asked = 0;
	answer = [&asked](unsigned long, void *argument) {
		auto &arg = *static_cast<memslot_query *>(argument);

		asked++;
		arg.count = arg.count + 100;
		arg.reason = MEMSLOT_REASON_NO_ROOM;
		return ENOSPC;
	};
	const auto done = dev.try_query(now);
	expect(!done && done.error().errnum == ENOSPC);
	expect(done.error().reason == MEMSLOT_REASON_NO_ROOM);
	expect(asked > 2 && asked < 20);
	/* What it held is still there */
	expect(now.size() == 2 && now[1].slot == 101 && now.generation() == 2U);

	asked = 0;
	answer = [&asked](unsigned long, void *argument) {
		asked++;
		static_cast<memslot_query *>(argument)->reason = MEMSLOT_REASON_ADDRESS_SPACE;
		return EINVAL;
	};
	try {
		dev.query(now, 7);
		expect(false);
	} catch (const memslot::error &why) {
		expect(why.code().value() == EINVAL);
		expect(why.reason() == MEMSLOT_REASON_ADDRESS_SPACE);
	}
	expect(asked == 1 && now.size() == 2);
}

/* What the kernel is told by a commit with these options; nothing if it is not asked */
std::optional<memslot_commit> told(const memslot::batch &batch, const memslot::commit_options &how,
				   memslot::failure *why = nullptr)
{
	std::optional<memslot_commit> seen;
	memslot::device dev;

	answer = [&seen](unsigned long request, void *argument) {
		expect(request == MEMSLOT_IOC_COMMIT);
		seen = *static_cast<memslot_commit *>(argument);
		return 0;
	};

	const std::size_t before = allocations;
	const auto done = dev.try_commit(batch, how);
	expect(allocations == before);
	expect(done.has_value() == seen.has_value());
	if (!done && why)
		*why = done.error();
	return seen;
}

void commit_options()
{
	memslot::batch batch;

	batch.remove(1).remove(2);
	auto seen = told(batch, {});
	expect(seen && seen->size == sizeof(*seen) && seen->flags == 0);
	expect(seen->count == 2 && seen->entry_size == sizeof(memslot_entry));
	expect(seen->replace_spaces == 0 && seen->reserved == 0);
	expect(seen->if_generation[0] == 0 && seen->if_generation[1] == 0);
	expect(told(batch, {.test_only = true})->flags == MEMSLOT_COMMIT_TEST_ONLY);
	expect(told(batch, {.park = true})->flags == MEMSLOT_COMMIT_PARK);

	seen = told(batch, {.replace_all = {0}});
	expect(seen->flags == MEMSLOT_COMMIT_REPLACE_ALL && seen->replace_spaces == 1);
	seen = told(batch, {.test_only = true, .park = true, .replace_all = {1, 0}});
	expect(seen->flags ==
	       (MEMSLOT_COMMIT_REPLACE_ALL | MEMSLOT_COMMIT_TEST_ONLY | MEMSLOT_COMMIT_PARK));
	expect(seen->replace_spaces == 3);
	expect(told(batch, {.replace_all = {}})->flags == 0);
	/* Not an address space that any VM has, and so the kernel's to refuse */
	expect(told(batch, {.replace_all = {4000000000}})->replace_spaces == 1U << 31);
	static_assert(!std::is_convertible_v<int, memslot::address_spaces>);
}

/* Each field of the reply is another number */
void commit_answers()
{
	memslot::device dev;

	answer = [](unsigned long, void *argument) {
		auto &arg = *static_cast<memslot_commit *>(argument);

		arg.strategy = MEMSLOT_STRATEGY_PARK;
		arg.park_cause = MEMSLOT_PARK_NESTED;
		arg.created = 11;
		arg.deleted = 12;
		arg.replaced = 13;
		arg.moved = 14;
		arg.reflagged = 15;
		arg.grace_periods = 16;
		arg.pages_kept = 1ULL << 41;
		arg.pages_remapped = 1ULL << 42;
		arg.pages_removed = 1ULL << 43;
		arg.pages_added = 1ULL << 44;
		arg.ns_fenced = 1ULL << 45;
		arg.generation[0] = 1ULL << 46;
		arg.generation[1] = 1ULL << 47;
		arg.tombstones = 18;
		arg.late_root = 19;
		return 0;
	};

	const memslot::report report = dev.commit({});
	expect(report.strategy == MEMSLOT_STRATEGY_PARK);
	expect(report.park_cause == MEMSLOT_PARK_NESTED);
	expect(report.created == 11 && report.deleted == 12 && report.replaced == 13);
	expect(report.moved == 14 && report.reflagged == 15 && report.grace_periods == 16);
	expect(report.pages_kept == 1ULL << 41 && report.pages_remapped == 1ULL << 42);
	expect(report.pages_removed == 1ULL << 43 && report.pages_added == 1ULL << 44);
	expect(report.ns_fenced == std::chrono::nanoseconds(1LL << 45));
	expect(report.generation[0] == 1ULL << 46 && report.generation[1] == 1ULL << 47);
	expect(report.tombstones == 18 && report.late_root == 19);

	answer = [](unsigned long, void *argument) {
		auto &arg = *static_cast<memslot_commit *>(argument);

		arg.reason = MEMSLOT_REASON_OVERLAP_ENTRY;
		arg.failed_index = 17;
		return EEXIST;
	};
	const auto failed = dev.try_commit({});
	expect(!failed && failed.error().errnum == EEXIST && failed.error().index == 17);
	expect(failed.error().reason == MEMSLOT_REASON_OVERLAP_ENTRY);
}

void stage_and_reset()
{
	memslot::batch batch;
	memslot::device dev;

	batch.remove(5).remove(6, 1);
	answer = [&batch](unsigned long request, void *argument) {
		const auto &arg = *static_cast<memslot_stage *>(argument);

		expect(request == MEMSLOT_IOC_STAGE && arg.size == sizeof(arg) && arg.flags == 0);
		expect(arg.count == 2 && arg.entry_size == sizeof(memslot_entry));
		expect(reinterpret_cast<const memslot_entry *>(arg.entries) ==
		       batch.entries().data());
		return 0;
	};
	dev.stage(batch);

	answer = [](unsigned long, void *argument) {
		auto &arg = *static_cast<memslot_stage *>(argument);

		arg.reason = MEMSLOT_REASON_DUPLICATE;
		arg.failed_index = 1;
		return EINVAL;
	};
	const auto failed = dev.try_stage(batch);
	expect(!failed && failed.error().errnum == EINVAL && failed.error().index == 1);
	expect(failed.error().reason == MEMSLOT_REASON_DUPLICATE);

	unsigned int resets = 0;
	answer = [&resets](unsigned long request, void *argument) {
		const auto &arg = *static_cast<memslot_reset *>(argument);

		expect(request == MEMSLOT_IOC_RESET && arg.size == sizeof(arg) && arg.flags == 0);
		resets++;
		return 0;
	};
	dev.reset();
	expect(resets == 1);
}

void commit_if_generation()
{
	memslot::batch normal, both;
	memslot::device dev;
	memslot::failure why{.op = memslot::operation::open, .errnum = 0};
	fake_vm vm;

	normal.remove(1);
	both.remove(1).remove(1, 1);
	vm.add(5);
	vm.add(9, 0, 1);
	use(vm);
	const memslot::layout before = dev.query();
	vm.add(1);
	const memslot::layout now = dev.query();
	const memslot::layout smm = dev.query(1);

	auto seen = told(normal, {.if_generation = now});
	expect(seen && seen->flags == MEMSLOT_COMMIT_IF_GENERATION && seen->if_generation[0] == 6);
	seen = told(both, {.if_generation = {smm, now}});
	expect(seen && seen->if_generation[0] == 6 && seen->if_generation[1] == 9);
	/* Two moments of one address space: the older one decides */
	expect(told(normal, {.if_generation = {before, now}})->if_generation[0] == 5);
	expect(told(normal, {.if_generation = {now, before}})->if_generation[0] == 5);

	/* What would be ESTALE for ever is told at once */
	expect(!told(both, {.if_generation = now}, &why));
	expect(why.errnum == EINVAL && why.reason == MEMSLOT_REASON_GENERATION && why.index == 1);
	expect(why.message() == "memslot: commit: entry 1: if_generation has no layout of this "
				"address space");
	expect(!told(normal, {.if_generation = smm}, &why) && why.index == 0);
	expect(!told(normal, {.replace_all = {0, 1}, .if_generation = now}, &why));
	expect(why.errnum == EINVAL && why.index == MEMSLOT_NO_ENTRY);
	expect(!told(normal, {.if_generation = memslot::layout()}, &why) && why.errnum == EINVAL);

	/* Staged entries are not known here: no VM has this generation, so the kernel refuses */
	expect(told(normal, {.if_generation = now})->if_generation[1] == ~std::uint64_t{0});
}

void bind_options()
{
	memslot::device dev;
	std::uint32_t flags = 0;

	answer = [&flags](unsigned long request, void *argument) {
		auto &arg = *static_cast<memslot_bind *>(argument);

		expect(request == MEMSLOT_IOC_BIND && arg.vm_fd == 17);
		flags = arg.flags;
		arg.address_spaces = 2;
		return 0;
	};
	expect(dev.bind(17) == 2 && flags == 0);
	expect(dev.bind(17, memslot::access::query_only) == 2 && flags == MEMSLOT_BIND_QUERY_ONLY);
}

void info_answers()
{
	const memslot::device dev;

	answer = [](unsigned long, void *argument) {
		auto &arg = *static_cast<memslot_info *>(argument);

		arg.features = MEMSLOT_FEATURE_PARK | MEMSLOT_FEATURE_QUERY;
		arg.strategies = 1U << MEMSLOT_STRATEGY_PARK;
		return 0;
	};
	const memslot::device_info info = dev.info();
	expect(info.has(memslot::feature::park) && info.has(memslot::feature::query));
	expect(!info.has(memslot::feature::replace_all));
	expect(info.has(MEMSLOT_STRATEGY_PARK) && !info.has(MEMSLOT_STRATEGY_FENCE));
}

bool same_entries(const memslot::batch &one, const memslot::batch &other)
{
	const auto left = one.entries(), right = other.entries();

	return left.size() == right.size() &&
	       (left.empty() || std::memcmp(left.data(), right.data(), left.size_bytes()) == 0);
}

/* Whatever assigns memory fails in turn: what is assigned to is what it was, or all of the other.
 */
void assignment_is_whole()
{
	memslot::batch big;
	unsigned int failed = 0;

	for (std::uint32_t slot = 0; slot < 100; slot++)
		big.remove(99 - slot);
	for (std::size_t left = 0;; left++) {
		memslot::batch small;
		bool done = true;

		small.remove(7);
		const memslot::batch before = small;
		memory_left = left;
		try {
			small = big;
		} catch (const std::bad_alloc &) {
			done = false;
		}
		memory_left = SIZE_MAX;
		expect(same_entries(small, done ? big : before));
		/* Its order, too: a slot is found again */
		small.remove(7).remove(8);
		expect(small.size() == (done ? 100U : 2U));
		if (done)
			break;
		failed++;
	}
	expect(failed == 2);

	/* Room that was made stays */
	memslot::batch roomy;

	roomy.reserve(100);
	roomy = memslot::batch(big);
	roomy.reserve(200);
	roomy = big;
	memory_left = 0;
	roomy.remove(1000);
	memory_left = SIZE_MAX;
	expect(roomy.size() == 101);

	memslot::batch moved = std::move(roomy);

	/* NOLINTBEGIN(*-use-after-move,clang-analyzer-cplusplus.Move): promised */
	expect(roomy.empty() && moved.size() == 101);
	roomy.remove(3);
	moved = std::move(roomy);
	expect(roomy.empty() && moved.size() == 1);
	roomy.remove(5);
	expect(roomy.size() == 1);
	/* NOLINTEND(*-use-after-move,clang-analyzer-cplusplus.Move) */
}

void layout_assignment_is_whole()
{
	const memslot::device dev;
	memslot::layout few, many;
	fake_vm vm;
	unsigned int failed = 0;

	use(vm);
	vm.add(3);
	dev.query(few);
	vm.add(50);
	dev.query(many);
	for (std::size_t left = 0;; left++) {
		memslot::layout now = few;
		bool done = true;

		memory_left = left;
		try {
			now = many;
		} catch (const std::bad_alloc &) {
			done = false;
		}
		memory_left = SIZE_MAX;
		expect(now.size() == (done ? 53U : 3U));
		expect(now.generation() == (done ? many : few).generation());
		dev.query(now);
		expect(now.size() == 53);
		if (done)
			break;
		failed++;
	}
	expect(failed == 1);
}

} // namespace

int main()
{
	query_empty();
	query_fields();
	query_makes_room();
	query_into_a_copy();
	query_gives_up();
	commit_options();
	commit_answers();
	stage_and_reset();
	commit_if_generation();
	bind_options();
	info_answers();
	assignment_is_whole();
	layout_assignment_is_whole();
	return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
