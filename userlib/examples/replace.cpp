// SPDX-License-Identifier: MIT
/*
 * Splits a slot in two and puts other host memory behind the second half, in one change: a vCPU
 * that runs meanwhile sees the old memory or the new one, never none.
 */
#include <memslot.hpp>

#include <cstdio>
#include <cstdlib>
#include <linux/kvm.h>
#include <sys/mman.h>

namespace {

constexpr std::uint64_t page = 4096;

/* All there is to it */
memslot::report replace_second_half(int vm_fd, std::byte *memory, std::byte *other)
{
	auto dev = memslot::device::open();
	dev.bind(vm_fd);

	memslot::batch batch;
	batch.set({.slot = 0, .guest_phys_addr = 0, .memory_size = page, .userspace_addr = memory});
	batch.set(
		{.slot = 1, .guest_phys_addr = page, .memory_size = page, .userspace_addr = other});
	return dev.commit(batch);
}

std::byte *allocate(std::size_t bytes)
{
	void *memory =
		mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		throw std::system_error(errno, std::generic_category(), "mmap");
	return static_cast<std::byte *>(memory);
}

/* A VM without vCPUs, two pages of memory in slot 0 */
int create_vm(std::byte *memory)
{
	const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	const int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	kvm_userspace_memory_region region{};

	region.memory_size = 2 * page;
	region.userspace_addr = reinterpret_cast<std::uintptr_t>(memory);
	if (vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		throw std::system_error(errno, std::generic_category(), "/dev/kvm");
	return vm;
}

} // namespace

int main()
try {
	std::byte *memory = allocate(2 * page);
	const auto report = replace_second_half(create_vm(memory), memory, allocate(page));

	std::printf("%u created, %u replaced, strategy %s\n", report.created, report.replaced,
		    memslot::words(report.strategy).data());
	return EXIT_SUCCESS;
} catch (const std::system_error &why) {
	std::fprintf(stderr, "%s\n", why.what());
	return EXIT_FAILURE;
}
