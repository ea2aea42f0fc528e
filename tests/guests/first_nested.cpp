// SPDX-License-Identifier: GPL-2.0
/*
 * The first nested root of a VM, created while commits take away the memory that it is in and bring
 * it back.  Each VM has one such moment, so there are many VMs, one after the other.
 *
 * The race: a vCPU finds the root's gfn visible, waits for slots_arch_lock while a commit has it,
 * and looks the root's slot up when the commit has published.  Each commit creates or removes
 * fillers, too, so that most of the time a commit has that lock.
 */
#include "command_line.hpp"
#include "json.hpp"
#include "stamped_memory.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string_view>
#include <sys/ioctl.h>
#include <sys/utsname.h>

namespace {

constexpr std::uint64_t root_page = 8;
/* Makes rmaps, which the first nested root allocates, take a while */
constexpr std::uint64_t ballast_gpa = 64 << 20;
constexpr std::uint64_t ballast_pages = 2048;
constexpr std::uint64_t filler_gpa = 128 << 20;
constexpr std::uint32_t fillers = 48;
/* Where a root's slot goes to */
constexpr std::uint64_t elsewhere_gpa = 256 << 20;

enum slot : std::uint32_t { visited_slot, root_slot, ballast_slot, first_filler };

/* How the memory of the root goes away */
enum class removal { deleted, shrunk, moved };

constexpr std::array removals{
	std::pair{std::string_view("delete"), removal::deleted},
	std::pair{std::string_view("shrink"), removal::shrunk},
	std::pair{std::string_view("move"), removal::moved},
};

/* What the command line asks for */
struct wanted {
	removal how = removal::deleted;
	bool zap_slots = false; /* KVM_X86_QUIRK_SLOT_ZAP_ALL is off */
	unsigned int vms = 0;
	unsigned int vcpus = 0;
};

/* The exit status where KVM cannot do what is asked for */
constexpr int cannot = 77;

struct cannot_be_done : std::runtime_error {
	using std::runtime_error::runtime_error;
};

struct totals {
	std::uint64_t commits = 0;
	std::uint64_t tombstoned = 0;
	std::uint64_t late_roots = 0;
	std::uint64_t parked = 0;
	std::uint64_t nested = 0;
	std::uint64_t rootless = 0;
	std::uint64_t nested_loops = 0;
	std::uint64_t bad = 0;
};

bool all_nested(const guests::vm &vm, std::uint64_t times)
{
	for (unsigned int i = 0; i < vm.vcpus(); i++)
		if (vm.counts(i).nested_loops < times)
			return false;
	return true;
}

/* The root is in the second of the two pages of its slot. */
void remove_root(removal how, memslot::region root, memslot::batch &batch)
{
	switch (how) {
	case removal::deleted:
		batch.remove(root.slot);
		return;
	case removal::shrunk:
		root.memory_size = guests::page_size;
		break;
	case removal::moved:
		root.guest_phys_addr = elsewhere_gpa;
		break;
	}
	batch.set(root);
}

/* KVM then zaps what goes and nothing else. */
void switch_zap_all_off(const guests::vm &vm)
{
#ifdef KVM_X86_QUIRK_SLOT_ZAP_ALL
	constexpr std::uint64_t zap_all = KVM_X86_QUIRK_SLOT_ZAP_ALL;
#else
	constexpr std::uint64_t zap_all = 1 << 7;
#endif
	kvm_enable_cap quirk{};
	const int known = ioctl(vm.fd(), KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2);

	if (known < 0 || !(static_cast<std::uint64_t>(known) & zap_all))
		throw cannot_be_done("KVM has no KVM_X86_QUIRK_SLOT_ZAP_ALL");
	quirk.cap = KVM_CAP_DISABLE_QUIRKS2;
	quirk.args[0] = zap_all;
	if (ioctl(vm.fd(), KVM_ENABLE_CAP, &quirk) < 0)
		guests::fail("KVM_CAP_DISABLE_QUIRKS2");
}

/*
 * With VMX, KVM before Linux 6.6 makes a triple fault of an entry that finds no root, and
 * nested_vmx_vmexit() warns of that: it does so without the module, too.  Later ones enter the
 * guest, as processors do.
 */
void check_entry_without_root(const guests::vm &vm)
{
	utsname system{};
	unsigned int major = 0;
	unsigned int minor = 0;

	if (uname(&system) < 0)
		guests::fail("uname");
	if (std::sscanf(system.release, "%u.%u", &major, &minor) != 2)
		throw std::runtime_error("an unknown kernel");
	if (vm.has_vmx() && std::pair(major, minor) < std::pair(6U, 6U))
		throw cannot_be_done(
			"KVM before Linux 6.6 warns of a nested guest without a root on Intel");
}

void run(const wanted &wanted, totals &total)
{
	guests::stamped_memory memory(root_page);
	guests::host_memory root_memory(2);
	guests::host_memory ballast(ballast_pages);
	const memslot::region root{
		.slot = guests::first_test_slot + root_slot,
		.guest_phys_addr = guests::range_gpa + root_page * guests::page_size,
		.memory_size = 2 * guests::page_size,
		.userspace_addr = root_memory.page(0),
	};
	guests::vm vm(wanted.vcpus, guests::nesting::own_tables);
	memslot::device device = memslot::device::open();
	std::vector<guests::location> visited;
	memslot::batch remove;
	memslot::batch restore;

	check_entry_without_root(vm);
	guests::append(visited, 0, 2, guests::fixed);
	vm.set_locations(visited);
	vm.set_region(memory.at(visited_slot, 0, root_page, 0));
	vm.set_region({
		.slot = guests::first_test_slot + ballast_slot,
		.guest_phys_addr = ballast_gpa,
		.memory_size = ballast_pages * guests::page_size,
		.userspace_addr = ballast.page(0),
	});
	vm.set_region(root);
	vm.put_nested_root(root_memory.page(1), root.guest_phys_addr + guests::page_size);
	if (wanted.zap_slots)
		switch_zap_all_off(vm);
	device.bind(vm.fd());
	remove_root(wanted.how, root, remove);
	restore.set(root);
	for (std::uint32_t filler = 0; filler < fillers; filler++) {
		const std::uint32_t slot = guests::first_test_slot + first_filler + filler;

		remove.set({
			.slot = slot,
			.guest_phys_addr = filler_gpa + filler * guests::page_size,
			.memory_size = guests::page_size,
			.userspace_addr = ballast.page(filler),
		});
		restore.remove(slot);
	}

	vm.start();
	while (!all_nested(vm, 2)) {
		for (const memslot::batch *batch : {&remove, &restore}) {
			const memslot::report report = device.commit(*batch);

			total.commits++;
			total.tombstoned += report.tombstones != 0;
			/* What brings the root back may meet the race in its new slot only */
			total.late_roots += batch == &remove && report.late_root;
			total.parked += report.park_cause != MEMSLOT_PARK_NOT;
			total.nested += report.park_cause == MEMSLOT_PARK_NESTED;
		}
	}
	vm.stop();
	for (unsigned int i = 0; i < wanted.vcpus; i++) {
		const guests::vcpu_page counts = vm.counts(i);

		total.nested_loops += counts.nested_loops;
		/* Without the root, Linux 6.1 does not enter the nested guest, later ones do */
		total.rootless += counts.nested_faults;
		total.bad += counts.nested_errors + counts.torn + counts.torn_across +
			     counts.holes + counts.wrong;
	}
	total.rootless += vm.seen().rootless;
	total.bad += vm.seen().holes + vm.seen().errors + vm.seen().shutdowns;
}

constexpr const char *usage = R"(Usage: first_nested [--zap-slots] delete|shrink|move VMS VCPUS
Memory goes away while the vCPUs of a VM run their first guests; prints JSON.

  --zap-slots  in VMs where KVM zaps the slots that go only
)";

wanted parse(int argc, char **argv)
{
	wanted parsed;
	const auto words = guests::command_line(usage)
				   .flag("zap-slots", parsed.zap_slots)
				   .parse(argc, argv, 3);
	const auto *const how = std::ranges::find(removals, words[0],
						  [](const auto &known) { return known.first; });

	if (how == removals.end())
		throw guests::wrong_usage("try --help");
	parsed.how = how->second;
	parsed.vms = static_cast<unsigned int>(guests::number(words[1], 1, 1'000'000));
	parsed.vcpus = static_cast<unsigned int>(guests::number(words[2], 1, guests::max_vcpus));
	return parsed;
}

int run(int argc, char **argv)
{
	const wanted wanted = parse(argc, argv);
	totals total;
	const auto met_all = [&] {
		return total.tombstoned >= wanted.vms && total.late_roots && total.nested &&
		       total.rootless;
	};
	/* And more, should the root have come before a commit, or no commit between two passes */
	const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(4);
	unsigned int made = 0;
	for (; made < wanted.vms || (!met_all() && std::chrono::steady_clock::now() < deadline);
	     made++)
		run(wanted, total);
	guests::json::object()
		.add("vms", made)
		.add("vcpus", wanted.vcpus)
		.add("commits", total.commits)
		.add("tombstoned", total.tombstoned)
		.add("late_roots", total.late_roots)
		.add("parked", total.parked)
		.add("park_nested", total.nested)
		.add("rootless", total.rootless)
		.add("nested_loops", total.nested_loops)
		.add("bad", total.bad)
		.print();
	return EXIT_SUCCESS;
}

} // namespace

int main(int argc, char **argv)
{
	return guests::run_program("first_nested", [&] {
		try {
			return run(argc, argv);
		} catch (const cannot_be_done &why) {
			std::fprintf(stderr, "first_nested: %s\n", why.what());
			return cannot;
		}
	});
}
