// SPDX-License-Identifier: MIT
/*
 * Plugs memory in at the end of the guest's, from several threads at once and without a lock of
 * their own: each looks at the layout, and commits only if it is still the same.
 */
#include <memslot.hpp>

#include <cstdio>
#include <cstdlib>
#include <future>
#include <linux/kvm.h>
#include <sys/mman.h>

namespace {

constexpr std::uint64_t dimm = 1 << 20;
constexpr unsigned int threads = 4;
constexpr unsigned int dimms_per_thread = 8;

/* All there is to it; slot ids are used from 0 on without gaps here */
void plug(memslot::device &dev, memslot::layout &now, const void *memory)
{
	memslot::batch batch;

	for (;;) {
		dev.query(now);

		const memslot::slot_info &last = now[now.size() - 1];
		batch.clear();
		batch.set({
			.slot = static_cast<std::uint32_t>(now.size()),
			.guest_phys_addr = last.guest_phys_addr + last.memory_size,
			.memory_size = dimm,
			.userspace_addr = memory,
		});

		const auto done = dev.try_commit(batch, {.if_generation = now});
		if (done)
			return;
		if (done.error().errnum != ESTALE)
			throw memslot::error(done.error());
		/* Somebody was faster: look again */
	}
}

std::byte *allocate(std::size_t bytes)
{
	void *memory =
		mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		throw std::system_error(errno, std::generic_category(), "mmap");
	return static_cast<std::byte *>(memory);
}

int create_vm()
{
	const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	const int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);

	if (vm < 0)
		throw std::system_error(errno, std::generic_category(), "/dev/kvm");
	return vm;
}

} // namespace

int main()
try {
	const int vm = create_vm();
	std::byte *memory = allocate((1 + threads * dimms_per_thread) * dimm);
	auto dev = memslot::device::open();
	std::vector<std::future<void>> plugging;

	dev.bind(vm);
	dev.commit(memslot::batch().set({.memory_size = dimm, .userspace_addr = memory}));
	for (unsigned int i = 0; i < threads; i++)
		plugging.push_back(
			std::async(std::launch::async,
				   [&dev, mine = memory + (1 + i * dimms_per_thread) * dimm] {
					   memslot::layout now;

					   for (unsigned int j = 0; j < dimms_per_thread; j++)
						   plug(dev, now, mine + j * dimm);
				   }));
	for (std::future<void> &each : plugging)
		each.get(); /* throws here what was thrown there */

	const memslot::layout now = dev.query();
	const memslot::slot_info &last = now[now.size() - 1];
	std::printf("%zu slots, %ju MiB\n", now.size(),
		    std::uintmax_t{(last.guest_phys_addr + last.memory_size) >> 20});
	return EXIT_SUCCESS;
} catch (const std::system_error &why) {
	std::fprintf(stderr, "%s\n", why.what());
	return EXIT_FAILURE;
}
