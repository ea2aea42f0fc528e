// SPDX-License-Identifier: GPL-2.0
#include "calls.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace fuzz {

namespace {

constexpr std::uint32_t slots = 12;		     /* ids that most entries name */
constexpr std::uint64_t lane = window_pages / slots; /* pages of the window for each, mostly */
constexpr std::uint32_t entry_size = sizeof(memslot_entry);
constexpr std::uint64_t guard = 0x5a5a5a5a5a5a5a5a;

constexpr std::array<int, 8> any_call{0, EFAULT, EINVAL, E2BIG, EOPNOTSUPP, EINTR, EBADF, ENOTTY};

/* What else a call may end with.  A file that was just closed may be another one now. */
std::span<const int> more_errors(call what)
{
	static constexpr std::array bind{EBUSY, EIO};
	static constexpr std::array stage{ENOTCONN, EIO, EACCES, ENOMEM};
	static constexpr std::array commit{ENOTCONN, EIO,    EACCES, ENOMEM,
					   ENOENT,   EEXIST, EBUSY,  ESTALE};
	static constexpr std::array reset{ENOTCONN, EIO, EACCES};
	static constexpr std::array query{ENOTCONN, ENOSPC, ENOMEM};

	switch (what) {
	case call::bind:
		return bind;
	case call::stage:
		return stage;
	case call::commit:
		return commit;
	case call::reset:
		return reset;
	case call::query:
		return query;
	default:
		return {};
	}
}

bool is_documented(call what, int error)
{
	return std::ranges::find(any_call, error) != any_call.end() ||
	       std::ranges::find(more_errors(what), error) != more_errors(what).end();
}

/* A word that is not what it should be */
std::uint64_t strange(chance &chance, std::uint64_t value)
{
	switch (chance.below(6)) {
	case 0:
		return value ^ 1ULL << chance.below(64);
	case 1:
		return value + chance.of<std::uint64_t>({1, 4, 8, page_size});
	case 2:
		return value - chance.of<std::uint64_t>({1, 4, 8, page_size});
	default:
		return chance.of<std::uint64_t>({0, 1, 2, 0xfff, 0x1000, 0x7fffffff, 0x80000000,
						 0xffffffff, 1ULL << 32, 1ULL << 52, 1ULL << 63,
						 ~0ULL, ~0ULL << 12});
	}
}

} // namespace

caller::caller(world &world, unsigned int thread, std::uint64_t seed)
    : world_(world), thread_(thread), chance_(seed)
{
}

void caller::step()
{
	const std::uint64_t kind = chance_.below(1000);

	/* A commit that succeeds takes as long as a hundred other calls. */
	if (kind < 30)
		info();
	else if (kind < 90)
		bind();
	else if (kind < 320)
		stage();
	else if (kind < 500)
		commit();
	else if (kind < 570)
		reset();
	else if (kind < 790)
		query();
	else if (kind < 830)
		unknown();
	else if (kind < 860)
		set_region();
	else if (kind < 900)
		dirty_log();
	else if (kind < 940)
		world_.memory.disturb(chance_);
	else if (kind < 995)
		change_files();
	else if (kind < 998)
		create_vcpu();
	else
		fork_and_call();
}

int caller::device()
{
	return chance_.of(world_.devices).load();
}

guest &caller::any_guest()
{
	return *chance_.of(world_.guests);
}

/* Makes a call with a struct that begins with its size; the guest's memory may hold it, so nothing
 * of it is believed but what the call returns. */
template <typename T>
long caller::call_device(call what, unsigned long number, T value)
{
	const std::uint64_t claimed = value.size;
	const std::uint64_t size = std::min<std::uint64_t>(claimed, page_size + 64);
	std::array<std::byte, page_size + 64 + sizeof(guard)> bytes{};

	std::memcpy(bytes.data(), &value, sizeof(value));
	if (chance_.percent(3) && size > sizeof(value)) /* a tail that is not zero */
		bytes[sizeof(value) + chance_.below(size - sizeof(value))] = std::byte{1};

	const std::uint64_t address =
		world_.memory.argument(chance_, thread_, std::max<std::uint64_t>(size, 4));
	/* Where queries write is anywhere, here too. */
	const bool guarded = what != call::query && what != call::commit &&
			     world_.memory.is_private(thread_, address, size + sizeof(guard));
	std::memcpy(bytes.data() + size, &guard, sizeof(guard));
	world_.memory.put(address, bytes.data(), guarded ? size + sizeof(guard) : size);

	device_ = device();
	const long result = ioctl(device_, number, reinterpret_cast<void *>(address)) < 0 ? -errno
											  : 0;
	world_.counts.note(what, result);
	if (!is_documented(what, static_cast<int>(-result)))
		world_.counts.complain("%s: undocumented errno %ld",
				       call_names[static_cast<std::size_t>(what)].data(), -result);
	if (guarded) {
		std::uint64_t now;

		std::memcpy(&now, reinterpret_cast<void *>(address + size), sizeof(now));
		if (now != guard)
			world_.counts.complain("%s wrote beyond its argument",
					       call_names[static_cast<std::size_t>(what)].data());
	}
	return result;
}

std::uint32_t caller::flags(std::uint32_t known)
{
	return chance_.percent(97) ? known : static_cast<std::uint32_t>(strange(chance_, known));
}

std::uint32_t caller::size_of(std::uint32_t size)
{
	switch (chance_.below(40)) {
	case 0:
		return static_cast<std::uint32_t>(strange(chance_, size));
	case 1:
		return size + 8;
	case 2:
		return size - chance_.of({1U, 4U, 8U});
	case 3:
		return chance_.of({4095U, 4096U, 4097U});
	default:
		return size;
	}
}

memslot_entry caller::entry()
{
	memslot_entry entry{};
	const std::uint64_t pages = 1 + chance_.below(lane);

	entry.slot = static_cast<std::uint32_t>(chance_.below(slots));
	entry.address_space = chance_.percent(10);
	if (chance_.percent(15)) {
		/* absent */
	} else {
		entry.flags = (chance_.percent(30) ? MEMSLOT_ENTRY_LOG_DIRTY_PAGES : 0U) |
			      (chance_.percent(8) ? MEMSLOT_ENTRY_READONLY : 0U);
		entry.guest_phys_addr =
			window + (chance_.percent(85)
					  ? entry.slot * lane + chance_.below(lane - pages + 1)
					  : chance_.below(window_pages)) *
					 page_size;
		entry.memory_size = pages * page_size;
		entry.userspace_addr =
			chance_.percent(50)
				? world_.memory.pool((entry.guest_phys_addr - window) / page_size)
				: world_.memory.guest_memory(chance_, pages);
	}
	if (chance_.percent(6)) {
		entry.dirty_bitmap_size = chance_.of({8U, 8U, 64U, 4096U, 16384U});
		entry.dirty_bitmap =
			world_.memory.argument(chance_, world_.nobody, entry.dirty_bitmap_size);
	}
	if (chance_.percent(4))
		spoil(entry);
	return entry;
}

void caller::spoil(memslot_entry &entry)
{
	const auto word = [&](std::uint32_t &field) {
		field = static_cast<std::uint32_t>(strange(chance_, field));
	};
	switch (chance_.below(9)) {
	case 0:
		entry.slot = chance_.of({508U, 509U, 32763U, 32764U, 32766U, 32767U, 1U << 16});
		break;
	case 1:
		word(entry.address_space);
		break;
	case 2:
		word(entry.flags);
		break;
	case 3:
		word(entry.reserved);
		break;
	case 4:
		entry.guest_phys_addr = strange(chance_, entry.guest_phys_addr);
		break;
	case 5:
		entry.memory_size = strange(chance_, entry.memory_size);
		break;
	case 6: /* no other: a guest must not reach this process's own memory */
		entry.userspace_addr = world_.memory.guest_memory(chance_, 1);
		break;
	case 7:
		entry.dirty_bitmap_size = strange(chance_, entry.dirty_bitmap_size);
		break;
	case 8:
		entry.dirty_bitmap ^= 1ULL << chance_.below(4);
		break;
	}
}

memslot_entry caller::move_to_lane(memslot_entry entry, std::uint32_t slot)
{
	const std::uint64_t lanes = (slot - std::uint64_t{entry.slot}) * lane * page_size;

	if (entry.slot >= slots || entry.memory_size > lane * page_size)
		return entry;
	entry.slot = slot;
	if (entry.memory_size)
		entry.guest_phys_addr += lanes;
	return entry;
}

/* An array of entries, in its place; returns its address. */
std::uint64_t caller::entries(std::uint32_t &count, std::uint32_t &size)
{
	count = static_cast<std::uint32_t>(chance_.percent(90) ? chance_.below(6)
							       : chance_.below(24));
	if (!chance_.below(8000))
		count = chance_.of({1000U, 16384U});
	size = chance_.percent(93) ? entry_size
				   : chance_.of({entry_size - 8, entry_size + 8, 64U, 128U, 4096U});

	std::vector<std::byte> array(static_cast<std::size_t>(count) * size);
	const bool distinct = chance_.percent(80);
	const auto first = static_cast<std::uint32_t>(chance_.below(slots));
	for (std::uint32_t i = 0; i < count; i++) {
		memslot_entry one = entry();

		if (count > slots) /* so many that the usual ids do not suffice */
			one.slot = i;
		else if (distinct) /* the usual lanes, another one each */
			one = move_to_lane(one, (first + i) % slots);
		std::memcpy(array.data() + static_cast<std::size_t>(i) * size, &one,
			    std::min<std::size_t>(size, sizeof(one)));
	}
	const std::uint64_t address = world_.memory.argument(chance_, thread_, array.size());
	if (count)
		world_.memory.put(address, array.data(), array.size());
	if (chance_.percent(2))
		count = static_cast<std::uint32_t>(strange(chance_, count));
	if (chance_.percent(2))
		size = static_cast<std::uint32_t>(strange(chance_, size));
	return address;
}

void caller::info()
{
	memslot_info info{};

	info.size = size_of(sizeof(info));
	info.flags = flags(0);
	call_device(call::info, MEMSLOT_IOC_INFO, info);
}

void caller::bind()
{
	memslot_bind bind{};

	bind.size = size_of(sizeof(bind));
	bind.flags = flags(chance_.percent(10) ? MEMSLOT_BIND_QUERY_ONLY : 0);
	bind.vm_fd = chance_.percent(85) ? any_guest().fd()
					 : chance_.of({-1, 0, 1, 1 << 20, device()});
	bind.reserved = chance_.percent(2);
	call_device(call::bind, MEMSLOT_IOC_BIND, bind);
}

void caller::stage()
{
	memslot_stage stage{};

	stage.size = size_of(sizeof(stage));
	stage.flags = flags(0);
	stage.entries = entries(stage.count, stage.entry_size);
	call_device(call::stage, MEMSLOT_IOC_STAGE, stage);
}

void caller::commit()
{
	memslot_commit commit{};

	commit.size = size_of(sizeof(commit));
	commit.entries = entries(commit.count, commit.entry_size);
	std::uint32_t known = chance_.percent(40) ? MEMSLOT_COMMIT_TEST_ONLY : 0;
	if (chance_.percent(8))
		known |= MEMSLOT_COMMIT_PARK;
	if (chance_.percent(5)) {
		known |= MEMSLOT_COMMIT_REPLACE_ALL;
		commit.replace_spaces = chance_.of({1U, 2U, 3U});
	}
	if (chance_.percent(10)) {
		known |= MEMSLOT_COMMIT_IF_GENERATION;
		commit.if_generation[0] = generation_[0];
		commit.if_generation[1] = generation_[1];
	}
	commit.flags = flags(known);
	if (chance_.percent(2))
		commit.reserved = static_cast<std::uint32_t>(strange(chance_, 0));
	if (chance_.percent(2))
		commit.replace_spaces = static_cast<std::uint32_t>(strange(chance_, 0));
	call_device(call::commit, MEMSLOT_IOC_COMMIT, commit);
}

void caller::reset()
{
	memslot_reset reset{};

	reset.size = size_of(sizeof(reset));
	reset.flags = flags(0);
	call_device(call::reset, MEMSLOT_IOC_RESET, reset);
}

void caller::query()
{
	memslot_query query{};

	query.size = size_of(sizeof(query));
	query.flags = flags(0);
	query.count = chance_.percent(90) ? static_cast<std::uint32_t>(chance_.below(32))
					  : static_cast<std::uint32_t>(strange(chance_, 32));
	query.entry_size =
		chance_.percent(90)
			? entry_size
			: chance_.of({entry_size - 8, entry_size + 8, 4096U, 4097U, 0U, ~0U});
	query.entries = world_.memory.argument(
		chance_, thread_, std::min<std::uint64_t>(32ULL * query.entry_size, 65536));
	query.address_space = chance_.percent(95) ? static_cast<std::uint32_t>(chance_.below(2))
						  : static_cast<std::uint32_t>(strange(chance_, 0));
	call_device(call::query, MEMSLOT_IOC_QUERY, query);

	if (query.address_space > 1 || !chance_.percent(30))
		return;
	/* What may be believed */
	std::array<memslot_entry, 64> now{};
	const std::uint32_t as = query.address_space;
	query = {};
	query.size = sizeof(query);
	query.entries = reinterpret_cast<std::uint64_t>(now.data());
	query.count = now.size();
	query.entry_size = entry_size;
	query.address_space = as;
	const long result = ioctl(device_, MEMSLOT_IOC_QUERY, &query) < 0 ? -errno : 0;
	world_.counts.note(call::query, result);
	if (result)
		return;
	generation_[as] = query.generation;
	for (std::uint32_t i = 1; i < query.count; i++)
		if (now[i - 1].guest_phys_addr + now[i - 1].memory_size > now[i].guest_phys_addr)
			world_.counts.complain("QUERY: slots %u and %u overlap or are not sorted",
					       now[i - 1].slot, now[i].slot);
}

void caller::unknown()
{
	const auto number = chance_.of<unsigned long>(
		{_IO(MEMSLOT_IOC_TYPE, 6), _IO(MEMSLOT_IOC_TYPE, 255), _IO(0xae, 0),
		 _IOWR(MEMSLOT_IOC_TYPE, 3, memslot_commit), 0UL, ~0UL});
	const int fd = device();
	const long result =
		ioctl(fd, number, world_.memory.argument(chance_, thread_, 128)) < 0 ? -errno : 0;

	world_.counts.note(call::unknown, result);
}

/* KVM's own way to change the same memory */
void caller::set_region()
{
	const memslot_entry wanted = entry();
	kvm_userspace_memory_region region{};

	region.slot = wanted.slot | wanted.address_space << 16;
	region.flags = wanted.flags;
	region.guest_phys_addr = wanted.guest_phys_addr;
	region.memory_size = wanted.memory_size;
	region.userspace_addr = wanted.userspace_addr;
	const long result =
		ioctl(any_guest().fd(), KVM_SET_USER_MEMORY_REGION, &region) < 0 ? -errno : 0;
	world_.counts.note(call::set_region, result);
}

void caller::dirty_log()
{
	static thread_local std::array<std::uint64_t, 512> bitmap;
	const auto slot = static_cast<std::uint32_t>(chance_.below(slots)) |
			  (chance_.percent(10) ? 1U << 16 : 0);
	const int fd = any_guest().fd();

	if (chance_.percent(60)) {
		kvm_dirty_log log{};

		log.slot = slot;
		log.dirty_bitmap = bitmap.data();
		world_.counts.note(call::dirty_log,
				   ioctl(fd, KVM_GET_DIRTY_LOG, &log) < 0 ? -errno : 0);
	} else {
		kvm_clear_dirty_log log{};

		log.slot = slot;
		log.first_page = chance_.below(2) * 64;
		log.num_pages = static_cast<std::uint32_t>(1 + chance_.below(64));
		log.dirty_bitmap = bitmap.data();
		world_.counts.note(call::clear_dirty_log,
				   ioctl(fd, KVM_CLEAR_DIRTY_LOG, &log) < 0 ? -errno : 0);
	}
}

/* Another file takes the place of one that others may be using at this moment. */
void caller::change_files()
{
	std::atomic<int> &place = chance_.of(world_.devices);
	int fd = -1;

	switch (chance_.below(20)) {
	case 0:
		break;
	case 1:
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
		break;
	case 2:
		fd = dup(device());
		break;
	default:
		fd = open("/dev/memslot", O_RDWR | O_CLOEXEC);
		break;
	}
	const int old = place.exchange(fd);
	if (old >= 0)
		close(old);
	if (fd >= 0 && chance_.percent(85)) {
		memslot_bind bind{};

		bind.size = sizeof(bind);
		bind.flags = chance_.percent(10) ? MEMSLOT_BIND_QUERY_ONLY : 0;
		bind.vm_fd = any_guest().fd();
		world_.counts.note(call::bind, ioctl(fd, MEMSLOT_IOC_BIND, &bind) < 0 ? -errno : 0);
	}
}

void caller::create_vcpu()
{
	const int fd = ioctl(any_guest().fd(), KVM_CREATE_VCPU, chance_.below(8));

	world_.counts.note(call::create_vcpu, fd < 0 ? -errno : 0);
	if (fd >= 0)
		close(fd);
}

/* A process that has the files but not the memory, and may die in the middle of a call. */
void caller::fork_and_call()
{
	if (!may_fork_)
		return;
	const bool kills = chance_.percent(50);
	const std::uint64_t steps = 1 + chance_.below(10);
	const std::uint64_t delay = chance_.below(5000);
	const std::uint64_t seed = chance_.bits();
	const pid_t child = fork();

	if (!child) {
		caller other(world_, thread_, seed);

		other.may_fork_ = false;
		for (std::uint64_t i = 0; i < steps; i++)
			other.step();
		_exit(0);
	}
	if (child < 0)
		return;
	if (kills) {
		usleep(static_cast<useconds_t>(delay));
		kill(child, SIGKILL);
	}
	waitpid(child, nullptr, 0);
}

} // namespace fuzz
