// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * The VMs of this process, and which descriptors are theirs.
 */
#pragma once

#include "vm.hpp"

#include <array>
#include <atomic>
#include <cstdint>

namespace memslot_run {

/** Descriptors above are not followed; a limit that high is set by nobody for a VMM */
inline constexpr int max_fds = 1 << 16;

/** What a descriptor is: index + 1 of a VM, or one of these */
using fd_kind = std::uint8_t;
inline constexpr fd_kind FD_UNKNOWN = 0;
inline constexpr fd_kind FD_PASSED = 0xfe; /* a VM that could not be bound */
inline constexpr fd_kind FD_OWN = 0xff;	   /* our /dev/memslot */

static_assert(max_vms < FD_PASSED);

extern futex_lock table_lock;
extern constinit std::array<vm, max_vms> table;
/** those at and above were never used */
extern std::atomic<unsigned> table_end;

fd_kind kind_of(int fd) noexcept;
void set_kind(int fd, fd_kind kind) noexcept;

/** The VM that a descriptor is of, if it is one of the table. */
vm *vm_of(int fd) noexcept;

/** KVM has made a VM: it gets a place, or a line says why not. */
void vm_created(int fd);

/** A VM's descriptor that came by a way that is not interposed, say over a socket. */
vm *adopt(int fd);

/** In a copy of the process: there are no VMs, and none of the descriptors is known. */
void forget_all();

} // namespace memslot_run
