// SPDX-License-Identifier: GPL-2.0
#include "counters.hpp"

#include "vm.hpp"

#include <fstream>
#include <linux/perf_event.h>
#include <stdexcept>
#include <sys/syscall.h>
#include <unistd.h>

namespace bench {

namespace {

/*
 * struct kvm_stats_desc without the name behind it: in Debian 12's <linux/kvm.h> the struct has
 * another size in C++ than in C.
 */
struct statistic_head {
	std::uint32_t flags;
	std::int16_t exponent;
	std::uint16_t size;
	std::uint32_t offset;
	std::uint32_t bucket_size;
};

std::uint32_t number_in(const std::string &path)
{
	std::ifstream file(path);
	std::uint32_t number = 0;

	if (!(file >> number))
		throw std::runtime_error("this kernel cannot count events: " + path);
	return number;
}

descriptor count(perf_event_attr attributes)
{
	attributes.size = sizeof(attributes);
	return descriptor(static_cast<int>(
		syscall(SYS_perf_event_open, &attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC)));
}

template <typename type>
void read_at(int fd, std::uint64_t offset, type *to, std::size_t count)
{
	const std::size_t bytes = count * sizeof(type);

	if (pread(fd, to, bytes, static_cast<off_t>(offset)) != static_cast<ssize_t>(bytes))
		guests::fail("reading KVM's statistics");
}

} // namespace

descriptor::~descriptor()
{
	if (fd_ >= 0)
		close(fd_);
}

calls_of::calls_of(std::initializer_list<const char *> functions)
{
	perf_event_attr attributes{};

	attributes.type = number_in("/sys/bus/event_source/devices/kprobe/type");
	for (const char *name : functions) {
		attributes.kprobe_func = reinterpret_cast<std::uintptr_t>(name);
		fd_ = count(attributes);
		if (fd_.get() >= 0)
			return;
	}
	guests::fail(std::string("counting calls of ") + *functions.begin());
}

calls_of::calls_of(const std::string &tracepoint)
{
	perf_event_attr attributes{};

	attributes.type = PERF_TYPE_TRACEPOINT;
	attributes.config = number_in("/sys/kernel/tracing/events/" + tracepoint + "/id");
	fd_ = count(attributes);
	if (fd_.get() < 0)
		guests::fail("counting " + tracepoint);
}

std::uint64_t calls_of::value() const
{
	std::uint64_t count = 0;

	if (read(fd_.get(), &count, sizeof(count)) != sizeof(count))
		guests::fail("reading a count of calls");
	return count;
}

statistic::statistic(int fd, std::string_view name)
{
	kvm_stats_header header{};

	fd_ = descriptor(ioctl(fd, KVM_GET_STATS_FD, nullptr));
	if (fd_.get() < 0)
		guests::fail("KVM_GET_STATS_FD");
	read_at(fd_.get(), 0, &header, 1);
	for (std::uint32_t i = 0; i < header.num_desc; i++) {
		const std::uint64_t at =
			header.desc_offset + i * (sizeof(statistic_head) + header.name_size);
		std::string found(header.name_size, '\0');
		statistic_head head{};

		read_at(fd_.get(), at, &head, 1);
		read_at(fd_.get(), at + sizeof(head), found.data(), found.size());
		if (name == found.c_str()) {
			offset_ = header.data_offset + head.offset;
			return;
		}
	}
	throw std::runtime_error("this KVM has no statistic " + std::string(name));
}

std::uint64_t statistic::value() const
{
	std::uint64_t number = 0;

	read_at(fd_.get(), offset_, &number, 1);
	return number;
}

} // namespace bench
