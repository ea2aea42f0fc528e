// SPDX-License-Identifier: MIT
/* memslot.hpp with the real module and a real VM. */
#include "expect.hpp"

#include <memslot.hpp>

#include <cstdlib>
#include <cstring>
#include <linux/kvm.h>
#include <sys/mman.h>
#include <sys/wait.h>

namespace {

constexpr std::uint64_t page = 4096;

int check(int result, const char *what)
{
	if (result < 0)
		throw std::system_error(errno, std::generic_category(), what);
	return result;
}

struct machine {
	int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	std::byte *memory = static_cast<std::byte *>(mmap(
		nullptr, 64 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));

	machine() = default;
	machine(const machine &) = delete;
	machine &operator=(const machine &) = delete;

	~machine()
	{
		munmap(memory, 64 * page);
		close(vm);
		close(kvm);
	}

	/* So many pages of memory from this one of the guest on, with the same one of the host */
	[[nodiscard]] memslot::region at(std::uint32_t slot, std::uint64_t first,
					 std::uint64_t pages) const
	{
		return {
			.slot = slot,
			.guest_phys_addr = first * page,
			.memory_size = pages * page,
			.userspace_addr = memory + first * page,
		};
	}

	/* Behind the module's back */
	void set_through_kvm(const memslot::region &wanted) const
	{
		kvm_userspace_memory_region region{};

		region.slot = wanted.slot;
		region.guest_phys_addr = wanted.guest_phys_addr;
		region.memory_size = wanted.memory_size;
		region.userspace_addr = reinterpret_cast<std::uintptr_t>(wanted.userspace_addr);
		check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	}

	/* Runs a guest that writes to these pages, all below 16, from code in page 0 */
	void write_pages(std::initializer_list<unsigned int> pages) const
	{
		auto *code = reinterpret_cast<unsigned char *>(memory);

		for (const unsigned int each : pages) {
			/* movb $1, each * page */
			const unsigned char write[] = {0xc6, 0x06, 0,
						       static_cast<unsigned char>(each << 4), 1};

			std::memcpy(code, write, sizeof(write));
			code += sizeof(write);
		}
		*code = 0xf4; /* hlt */

		const int vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
		kvm_sregs system{};
		kvm_regs registers{};
		const auto run_size = static_cast<std::size_t>(
			check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE"));
		auto *run = static_cast<kvm_run *>(
			mmap(nullptr, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0));

		check(ioctl(vcpu, KVM_GET_SREGS, &system), "KVM_GET_SREGS");
		system.cs.base = 0;
		system.cs.selector = 0;
		check(ioctl(vcpu, KVM_SET_SREGS, &system), "KVM_SET_SREGS");
		registers.rflags = 2;
		check(ioctl(vcpu, KVM_SET_REGS, &registers), "KVM_SET_REGS");
		check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		expect(run->exit_reason == KVM_EXIT_HLT);
		munmap(run, run_size);
		close(vcpu);
	}
};

memslot::device bound(const machine &host, memslot::access what_for = memslot::access::change)
{
	auto dev = memslot::device::open();

	expect(dev.bind(host.vm, what_for) == 2);
	return dev;
}

bool equal(const memslot::region &one, const memslot::region &other)
{
	return one.slot == other.slot && one.address_space == other.address_space &&
	       one.guest_phys_addr == other.guest_phys_addr &&
	       one.memory_size == other.memory_size && one.userspace_addr == other.userspace_addr &&
	       one.log_dirty_pages == other.log_dirty_pages && one.readonly == other.readonly;
}

bool holds(const memslot::layout &now, std::initializer_list<memslot::region> wanted)
{
	return std::ranges::equal(now, wanted, equal);
}

void info()
{
	const auto told = memslot::device::open().info();

	for (const memslot::feature each : memslot::features)
		expect(told.has(each));
	expect(told.has(MEMSLOT_STRATEGY_FENCE) && told.has(MEMSLOT_STRATEGY_PARK));
}

void query()
{
	const machine host;
	auto dev = bound(host);
	memslot::layout now = dev.query();
	memslot::batch batch;
	memslot::region rom = host.at(3, 8, 4), logged = host.at(20, 20, 1), smm = host.at(5, 0, 2);

	expect(now.empty() && now.generation());
	rom.readonly = true;
	logged.log_dirty_pages = true;
	smm.address_space = 1;
	batch.set(logged).set(rom).set(host.at(7, 0, 8)).set(smm);

	const memslot::report report = dev.commit(batch);
	dev.query(now);
	expect(holds(now, {host.at(7, 0, 8), rom, logged}));
	expect(now.generation() == report.generation[0] && now.address_space() == 0);
	expect(std::ranges::none_of(now, &memslot::slot_info::guest_memfd));
	expect(now.find(3) == &now[1] && now.find_address(11 * page) == &now[1]);
	expect(!now.find_address(12 * page));
	dev.query(now, 1);
	expect(holds(now, {smm}));
	expect(now.generation() == report.generation[1] && now.address_space() == 1);

	const auto wrong = dev.try_query(now, 2);
	expect(!wrong && wrong.error().errnum == EINVAL &&
	       wrong.error().reason == MEMSLOT_REASON_ADDRESS_SPACE);
	expect(holds(now, {smm}));
	const auto unbound = memslot::device::open().try_query(now);
	expect(!unbound && unbound.error().errnum == ENOTCONN);

	/* What was queried can be committed, and is no work */
	dev.query(now);
	batch.clear();
	for (const memslot::slot_info &each : now)
		batch.set(each);
	expect(dev.commit(batch).strategy == MEMSLOT_STRATEGY_NONE);
}

void query_many()
{
	const machine host;
	auto dev = bound(host);
	memslot::batch batch;

	for (std::uint32_t slot = 0; slot < 600; slot++) {
		memslot::region one = host.at(slot, 0, 1);

		one.guest_phys_addr = (600 - slot) * 2ULL * page;
		batch.set(one);
	}
	dev.commit(batch);

	const memslot::layout now = dev.query();
	expect(now.size() == 600);
	expect(std::ranges::is_sorted(now, {}, &memslot::region::guest_phys_addr));
	expect(now[0].slot == 599 && now[599].slot == 0);
}

void query_only()
{
	const machine host;
	auto dev = bound(host, memslot::access::query_only);
	memslot::batch batch;

	host.set_through_kvm(host.at(1, 2, 3));
	expect(holds(dev.query(), {host.at(1, 2, 3)}));
	batch.remove(1);
	for (const memslot::failure &why :
	     {dev.try_commit(batch).error(), dev.try_stage(batch).error(), dev.try_reset().error()})
		expect(why.errnum == EACCES);
	expect(dev.try_commit(batch).error().reason == MEMSLOT_REASON_QUERY_ONLY);

	/* Another process may look, but is told no host addresses */
	std::fflush(nullptr);
	const pid_t child = fork();
	if (child == 0) {
		memslot::region hidden = host.at(1, 2, 3);

		failures = 0;
		hidden.userspace_addr = nullptr;
		expect(holds(bound(host, memslot::access::query_only).query(), {hidden}));
		expect(memslot::device::open().try_bind(host.vm).error().errnum == EIO);
		std::_Exit(failures ? EXIT_FAILURE : EXIT_SUCCESS);
	}
	int status = -1;
	waitpid(child, &status, 0);
	expect(status == 0);
}

void stage()
{
	const machine host;
	auto dev = bound(host);
	memslot::batch staged, inlined;

	staged.set(host.at(0, 0, 4)).set(host.at(1, 4, 4));
	dev.stage(staged);
	expect(dev.query().empty());
	inlined.set(host.at(2, 8, 4));
	const memslot::report report = dev.commit(inlined);
	expect(report.created == 3 && report.pages_added == 12 && report.grace_periods == 1);
	expect(holds(dev.query(), {host.at(0, 0, 4), host.at(1, 4, 4), host.at(2, 8, 4)}));

	/* One index counts the staged entries and then the others; a failure keeps the staged */
	memslot::region logged = host.at(0, 0, 4);
	logged.log_dirty_pages = true;
	staged.clear();
	staged.set(logged).remove(1);
	dev.stage(staged);
	inlined.clear();
	inlined.remove(2).remove(77);
	const auto failed = dev.try_commit(inlined);
	expect(!failed && failed.error().errnum == ENOENT && failed.error().index == 3);
	expect(dev.query().size() == 3);
	inlined.clear();
	const memslot::report kept = dev.commit(inlined);
	expect(kept.reflagged == 1 && kept.deleted == 1 && kept.pages_removed == 4);
	expect(holds(dev.query(), {logged, host.at(2, 8, 4)}));

	staged.clear();
	dev.stage(staged.remove(2));
	dev.reset();
	expect(dev.commit(inlined).grace_periods == 0);
	expect(dev.query().size() == 2);

	/* Other memory below the same guest pages */
	memslot::region elsewhere = host.at(2, 8, 4);
	elsewhere.userspace_addr = host.memory + 20 * page;
	inlined.set(elsewhere);
	const memslot::report replaced = dev.commit(inlined);
	expect(replaced.replaced == 1 && replaced.pages_remapped == 4);
}

void replace_all()
{
	const machine host;
	auto dev = bound(host);
	memslot::batch batch;
	memslot::region smm = host.at(5, 0, 2);

	smm.address_space = 1;
	batch.set(host.at(0, 0, 4)).set(host.at(1, 4, 4)).set(host.at(2, 8, 4)).set(smm);
	dev.commit(batch);

	batch.clear();
	batch.set(host.at(1, 4, 8));
	const memslot::commit_options how{.test_only = true, .replace_all = {0}};
	expect(dev.commit(batch, how).deleted == 2);
	expect(dev.query().size() == 3);
	const memslot::report report = dev.commit(batch, {.replace_all = {0}});
	expect(report.deleted == 2 && report.replaced == 1 && report.created == 0);
	expect(report.pages_removed == 4 && report.pages_kept == 8);
	expect(holds(dev.query(), {host.at(1, 4, 8)}));
	expect(holds(dev.query(1), {smm}));

	batch.clear();
	expect(dev.commit(batch, {.replace_all = {0, 1}}).deleted == 2);
	expect(dev.query().empty() && dev.query(1).empty());

	const auto wrong = dev.try_commit(batch, {.replace_all = {2}});
	expect(!wrong && wrong.error().errnum == EINVAL);
}

void if_generation()
{
	const machine host;
	auto dev = bound(host);
	memslot::layout now, smm;
	memslot::batch batch;

	dev.query(now);
	batch.set(host.at(0, 0, 4));
	dev.commit(batch, {.if_generation = now});

	/* It is another layout now, as the commit knows that made it */
	batch.clear();
	batch.set(host.at(1, 4, 4));
	const auto stale = dev.try_commit(batch, {.if_generation = now});
	expect(!stale && stale.error().errnum == ESTALE &&
	       stale.error().reason == MEMSLOT_REASON_GENERATION);
	expect(holds(dev.query(), {host.at(0, 0, 4)}));

	/* Neither does KVM's own ioctl go unnoticed */
	dev.query(now);
	host.set_through_kvm(host.at(9, 20, 1));
	expect(dev.try_commit(batch, {.if_generation = now}).error().errnum == ESTALE);

	dev.query(now);
	expect(dev.commit(batch, {.test_only = true, .if_generation = now}).created == 1);
	batch.set([&host] {
		memslot::region region = host.at(1, 4, 4);

		region.address_space = 1;
		return region;
	}());
	const auto missing = dev.try_commit(batch, {.if_generation = now});
	expect(!missing && missing.error().errnum == EINVAL && missing.error().index == 1U);
	dev.query(smm, 1);
	expect(dev.commit(batch, {.if_generation = {now, smm}}).created == 2);
}

void last_dirty_bitmap()
{
	const machine host;
	auto dev = bound(host);
	memslot::batch batch;
	memslot::region logged = host.at(1, 2, 8);
	std::vector<std::uint64_t> bits(memslot::dirty_bitmap_words(logged.memory_size), ~0ULL);

	logged.log_dirty_pages = true;
	batch.set(host.at(0, 0, 1)).set(logged);
	dev.commit(batch);
	host.write_pages({2, 5, 9});

	batch.clear();
	batch.remove(1, std::span<std::uint64_t>());
	const auto empty = dev.try_commit(batch);
	expect(!empty && empty.error().errnum == EINVAL &&
	       empty.error().reason == MEMSLOT_REASON_BITMAP_SIZE);
	batch.remove(0, bits);
	const auto not_logged = dev.try_commit(batch.remove(1));
	expect(!not_logged && not_logged.error().reason == MEMSLOT_REASON_NO_DIRTY_LOG);
	expect(dev.query().size() == 2);

	batch.clear();
	dev.commit(batch.remove(1, bits));
	/* Pages of the slot, which began at page 2 */
	expect(bits.size() == 1 && bits[0] == (1 << 0 | 1 << 3 | 1 << 7));
	expect(holds(dev.query(), {host.at(0, 0, 1)}));
}

} // namespace

int main()
try {
	info();
	query();
	query_many();
	query_only();
	stage();
	replace_all();
	if_generation();
	last_dirty_bitmap();
	return failures ? EXIT_FAILURE : EXIT_SUCCESS;
} catch (const std::exception &why) {
	std::fprintf(stderr, "%s\n", why.what());
	return EXIT_FAILURE;
}
