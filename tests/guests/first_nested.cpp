// SPDX-License-Identifier: GPL-2.0
/*
 * The first nested root of a VM, created while commits take away the memory that it is in and bring
 * it back.  Each VM has one such moment, so there are many VMs, one after the other.
 */
#include "stamped_memory.hpp"

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

namespace {

constexpr std::uint64_t root_page = 8;
/* Makes rmaps, which the first nested root allocates, take a while */
constexpr std::uint64_t ballast_gpa = 64 << 20;
constexpr std::uint64_t ballast_pages = 2048;

enum slot : std::uint32_t { visited_slot, root_slot, ballast_slot };

struct totals {
	std::uint64_t commits = 0;
	std::uint64_t uncovers = 0;
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

void run(unsigned int vcpus, totals &total)
{
	guests::stamped_memory memory(root_page);
	guests::host_memory root_memory(1);
	guests::host_memory ballast(ballast_pages);
	const memslot::region root{
		.slot = guests::first_test_slot + root_slot,
		.guest_phys_addr = guests::range_gpa + root_page * guests::page_size,
		.memory_size = guests::page_size,
		.userspace_addr = root_memory.page(0),
	};
	guests::vm vm(vcpus, guests::nesting::own_tables);
	memslot::device device = memslot::device::open();
	std::vector<guests::location> visited;
	memslot::batch remove;
	memslot::batch restore;

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
	vm.put_nested_root(root_memory.page(0), root.guest_phys_addr);
	device.bind(vm.fd());
	remove.remove(root.slot);
	restore.set(root);

	vm.start();
	while (!all_nested(vm, 2)) {
		const memslot::report report = device.commit(remove);

		device.commit(restore);
		total.commits += 2;
		total.uncovers += report.park_cause == MEMSLOT_PARK_UNCOVERS;
		total.nested += report.park_cause == MEMSLOT_PARK_NESTED;
	}
	vm.stop();
	for (unsigned int i = 0; i < vcpus; i++) {
		const guests::vcpu_page counts = vm.counts(i);

		total.nested_loops += counts.nested_loops;
		/* Without the root, Linux 6.1 does not enter the nested guest, and later ones do */
		total.rootless += counts.nested_faults;
		total.bad += counts.nested_errors + counts.torn + counts.torn_across +
			     counts.holes + counts.wrong;
	}
	total.rootless += vm.seen().rootless;
	total.bad += vm.seen().holes + vm.seen().errors + vm.seen().shutdowns;
}

} // namespace

int main(int argc, char **argv)
try {
	if (argc != 3)
		throw std::invalid_argument("usage: first_nested VMS VCPUS");
	const int vms = std::atoi(argv[1]);
	const int vcpus = std::atoi(argv[2]);
	if (vms < 1 || vcpus < 1 || vcpus > static_cast<int>(guests::max_vcpus))
		throw std::invalid_argument("out of range");

	totals total;
	const auto met_all = [&total, wanted = static_cast<unsigned int>(vms)] {
		return total.uncovers >= wanted && total.nested && total.rootless;
	};
	/* And more, should the root have come before a commit, or no commit between two passes */
	int made = 0;
	for (; made < vms || (made < 20 * vms && !met_all()); made++)
		run(static_cast<unsigned int>(vcpus), total);
	std::printf("{\"vms\": %d, \"vcpus\": %d, \"commits\": %" PRIu64
		    ", \"park_uncovers\": %" PRIu64 ", \"park_nested\": %" PRIu64
		    ", \"rootless\": %" PRIu64 ", \"nested_loops\": %" PRIu64 ", \"bad\": %" PRIu64
		    "}\n",
		    made, vcpus, total.commits, total.uncovers, total.nested, total.rootless,
		    total.nested_loops, total.bad);
	return EXIT_SUCCESS;
} catch (const std::invalid_argument &why) {
	std::fprintf(stderr, "first_nested: %s\n", why.what());
	return 2;
} catch (const std::exception &why) {
	std::fprintf(stderr, "first_nested: %s\n", why.what());
	return EXIT_FAILURE;
}
