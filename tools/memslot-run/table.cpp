// SPDX-License-Identifier: GPL-2.0
#include "table.hpp"

#include "copy.hpp"
#include "counters.hpp"
#include "device.hpp"
#include "raw_syscall.hpp"
#include "say.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <sys/mman.h>

namespace memslot_run {

futex_lock table_lock;
constinit std::array<vm, max_vms> table{};
std::atomic<unsigned> table_end;

namespace {

std::array<std::atomic<fd_kind>, max_fds> fd_kinds;

bool is_vm(fd_kind kind) noexcept
{
	return kind != FD_UNKNOWN && kind <= max_vms;
}

/** Memory for the changes of a VM, zero; nullptr if there is none. */
vm_collector *map_collector() noexcept
{
	const long address = raw_syscall(SYS_mmap, 0, sizeof(vm_collector), PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return is_error(address) ? nullptr : reinterpret_cast<vm_collector *>(address);
}

/** Gives a VM a place in the table; -1 if there is none. */
int enter(int vm_fd, int memslot_fd, const limits &allowed)
{
	for (unsigned i = 0; i < max_vms; i++) {
		vm &one = table[i];

		if (one.open)
			continue;
		if (!one.changes)
			one.changes = map_collector();
		if (!one.changes)
			return -1;

		use it(one);

		one.open = true;
		one.descriptors = 1;
		one.region2 = allowed.region2;
		one.kernel.memslot_fd.store(memslot_fd);
		one.kernel.vm_fd.store(vm_fd);
		one.changes->start(allowed, counters());
		one.keeper.start(one);
		table_end.store(std::max(table_end.load(), i + 1));
		return static_cast<int>(i);
	}
	return -1;
}

/** One descriptor less; true if it was the last. */
bool drop_descriptor(vm &of, int fd)
{
	const fd_kind kind = kind_of(fd);

	set_kind(fd, FD_UNKNOWN);
	if (--of.descriptors == 0)
		return true;
	for (int other = 0; of.kernel.vm_fd == fd && other < max_fds; other++) {
		if (kind_of(other) == kind)
			of.kernel.vm_fd.store(other);
	}
	return false;
}

/** A VM has no descriptor any more; its vCPUs can outlive them. */
void retire(vm &of)
{
	{
		use it(of);

		it.commit(moment::close);
	}

	const std::lock_guard guard(table_lock);

	set_kind(of.kernel.memslot_fd, FD_UNKNOWN);
	device::close(of.kernel.memslot_fd);
	of.open = false;
}

} // namespace

fd_kind kind_of(int fd) noexcept
{
	return fd >= 0 && fd < max_fds ? fd_kinds[fd].load(std::memory_order_acquire) : FD_UNKNOWN;
}

void set_kind(int fd, fd_kind kind) noexcept
{
	if (fd >= 0 && fd < max_fds)
		fd_kinds[fd].store(kind, std::memory_order_release);
}

vm *vm_of(int fd) noexcept
{
	const fd_kind kind = kind_of(fd);

	return is_vm(kind) ? &table[kind - 1U] : nullptr;
}

void vm_created(int fd)
{
	if (!has_our_descriptors())
		return;

	const inside busy;
	const std::lock_guard guard(table_lock);
	limits allowed{};
	int memslot_fd = -1;
	const char *why = nullptr;
	const int err = device::bind(fd, memslot_fd, allowed);

	if (err) {
		why = err == EOPNOTSUPP ? "the module does not change this kind of VM"
					: strerrordesc_np(err);
	} else if (fd >= max_fds || memslot_fd >= max_fds) {
		why = "its file descriptor is too high";
	} else if (const int index = enter(fd, memslot_fd, allowed); index >= 0) {
		set_kind(memslot_fd, FD_OWN);
		set_kind(fd, static_cast<fd_kind>(index + 1));
		count(counters().vms);
		return;
	} else {
		why = "too many VMs, or no memory";
	}

	if (memslot_fd >= 0)
		device::close(memslot_fd);
	set_kind(fd, FD_PASSED);
	count(counters().vms_passed);
	say("a VM's memory calls go to KVM one by one: %s", why);
}

vm *adopt(int fd)
{
	const std::lock_guard guard(table_lock);

	if (kind_of(fd) != FD_UNKNOWN)
		return vm_of(fd);
	for (unsigned i = 0; fd < max_fds && i < table_end.load(); i++) {
		vm &one = table[i];

		if (!one.open || !one.descriptors || !device::same_file(fd, one.kernel.vm_fd))
			continue;
		one.descriptors++;
		set_kind(fd, static_cast<fd_kind>(i + 1));
		return &one;
	}
	return nullptr;
}

void forget_all()
{
	for (int fd = 0; fd < max_fds; fd++) {
		if (kind_of(fd) == FD_OWN)
			device::close(fd);
		if (kind_of(fd) != FD_UNKNOWN)
			set_kind(fd, FD_UNKNOWN);
	}
	for (vm &one : table) {
		if (one.changes)
			raw_syscall(SYS_munmap, arg(one.changes), sizeof(vm_collector));
		one.changes = nullptr;
		one.open = false;
		one.deadline.store(0);
		one.lock.abandon();
		one.keeper.abandon();
	}
	table_end.store(0);
	table_lock.abandon();
}

bool closes(int fd)
{
	if (kind_of(fd) == FD_UNKNOWN || self.inside.load(std::memory_order_relaxed) ||
	    !has_our_descriptors())
		return true;
	if (kind_of(fd) == FD_OWN)
		return false;

	const inside busy;
	vm *last = nullptr;
	{
		const std::lock_guard guard(table_lock);
		vm *of = vm_of(fd);

		if (!of)
			set_kind(fd, FD_UNKNOWN);
		else if (drop_descriptor(*of, fd))
			last = of;
	}
	if (last)
		retire(*last);
	return true;
}

void replaces(int fd)
{
	if (closes(fd))
		return;

	const inside busy;
	const std::lock_guard guard(table_lock);

	for (vm &one : table) {
		if (!one.open || one.kernel.memslot_fd != fd)
			continue;

		const int elsewhere = device::relocate(fd);

		/* Without room the next change finds no device, and goes to KVM as it is */
		set_kind(fd, FD_UNKNOWN);
		set_kind(elsewhere, FD_OWN);
		one.kernel.memslot_fd.store(elsewhere);
	}
}

void copied(int from, int to)
{
	if (from == to || kind_of(from) == FD_UNKNOWN || !has_our_descriptors())
		return;

	const fd_kind kind = kind_of(from);

	if (kind == FD_UNKNOWN || kind == FD_OWN)
		return;

	const inside busy;
	const std::lock_guard guard(table_lock);

	if (vm *of = vm_of(from))
		of->descriptors++;
	set_kind(to, kind);
}

int next_own(int from)
{
	notice_copy();
	for (int fd = std::max(from, 0); fd < max_fds; fd++) {
		if (kind_of(fd) == FD_OWN)
			return fd;
	}
	return -1;
}

int next_vm(int from)
{
	for (int fd = std::max(from, 0); fd < max_fds; fd++) {
		if (is_vm(kind_of(fd)) || kind_of(fd) == FD_PASSED)
			return fd;
	}
	return -1;
}

} // namespace memslot_run
