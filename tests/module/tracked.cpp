// SPDX-License-Identifier: GPL-2.0
/*
 * A VM whose pages the module of page_track/ tracks is not changed, until that ends.  Prints what
 * was said to a commit before, during and after.
 */
#include "vm.hpp"

#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace {

void track(int vm_fd)
{
	std::ofstream parameter("/sys/module/page_track/parameters/vm_fd");

	parameter << vm_fd << std::flush;
	if (!parameter)
		guests::fail("/sys/module/page_track/parameters/vm_fd");
}

void commit(memslot::device &device, std::byte *memory, std::uint64_t at)
{
	memslot::batch batch;

	batch.set({
		.slot = guests::first_test_slot,
		.guest_phys_addr = guests::range_gpa + at * guests::page_size,
		.memory_size = guests::page_size,
		.userspace_addr = memory,
	});
	try {
		const memslot::report report = device.commit(batch);

		std::printf("%u created, %u moved\n", report.created, report.moved);
	} catch (const memslot::error &refused) {
		std::printf("errno %d: %.*s\n", refused.code().value(),
			    static_cast<int>(refused.reason_words().size()),
			    refused.reason_words().data());
	}
}

} // namespace

int main()
try {
	guests::vm vm(1);
	guests::host_memory memory(1);
	memslot::device device = memslot::device::open();

	device.bind(vm.fd());
	commit(device, memory.page(0), 0);
	track(vm.fd());
	commit(device, memory.page(0), 1);
	track(-1);
	commit(device, memory.page(0), 1);
	return EXIT_SUCCESS;
} catch (const std::exception &why) {
	std::fprintf(stderr, "tracked: %s\n", why.what());
	return EXIT_FAILURE;
}
