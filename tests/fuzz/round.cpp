// SPDX-License-Identifier: GPL-2.0
#include "round.hpp"

#include "calls.hpp"

#include <cerrno>
#include <fcntl.h>
#include <latch>
#include <sys/ioctl.h>
#include <system_error>
#include <unistd.h>

namespace fuzz {

namespace {

constexpr unsigned int callers = 3;

enum class end {
	orderly,
	amid_calls, /* all threads are somewhere in the kernel */
	vm_first,   /* the VM's file goes while its vCPUs run and calls are made */
	count_of_ends
};

} // namespace

void run_round(std::uint64_t seed, std::uint64_t calls, tally &tally)
{
	chance chance(seed);
	const auto how =
		static_cast<end>(chance.below(static_cast<std::uint64_t>(end::count_of_ends)));
	arena memory(chance.bits(), callers + 1);
	std::array guests{
		std::make_unique<guest>(memory, chance, tally),
		std::make_unique<guest>(memory, chance, tally),
	};
	std::array<std::atomic<int>, 6> devices;
	world world{memory, tally, guests, devices, callers};

	for (std::size_t i = 0; i < devices.size(); i++) {
		memslot_bind bind{};

		devices[i] = open("/dev/memslot", O_RDWR | O_CLOEXEC);
		if (devices[i] < 0)
			throw std::system_error(errno, std::generic_category(), "/dev/memslot");
		bind.size = sizeof(bind);
		bind.flags = i == 4 ? MEMSLOT_BIND_QUERY_ONLY : 0U;
		bind.vm_fd = guests[i % guests.size()]->fd();
		if (i < 5)
			tally.note(call::bind,
				   ioctl(devices[i], MEMSLOT_IOC_BIND, &bind) < 0 ? -errno : 0);
	}

	std::latch last_steps(1);
	std::vector<std::jthread> threads;
	for (unsigned int i = 0; i < callers; i++)
		threads.emplace_back([&, i, seed = chance.bits()](const std::stop_token &stopped) {
			caller caller(world, i, seed);
			const std::uint64_t steps = calls / callers;

			for (std::uint64_t n = 0; n < steps && !stopped.stop_requested(); n++) {
				caller.step();
				if (i == 0 && n == steps * 3 / 4)
					last_steps.count_down();
			}
		});
	tally.ready++;

	last_steps.wait();
	switch (how) {
	case end::amid_calls:
		_exit(0);
	case end::vm_first:
		guests[0]->close_vm();
		break;
	default:
		break;
	}
	threads.clear();
	memory.stop();
	for (std::unique_ptr<guest> &guest : guests)
		guest->stop();
	for (std::atomic<int> &device : devices)
		if (const int fd = device.exchange(-1); fd >= 0)
			close(fd);
	guests = {};
	_exit(0);
}

} // namespace fuzz
