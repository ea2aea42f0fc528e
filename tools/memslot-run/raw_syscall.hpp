// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * System calls that bypass the C library: the library interposes the C library's, and must neither
 * call itself nor change the caller's errno.
 */
#pragma once

#ifndef __x86_64__
#error "memslot-run, like the module, is for x86-64"
#endif

#include <sys/syscall.h>

namespace memslot_run {

/** A system call; returns what the kernel does, a negative errno on failure. */
inline long raw_syscall(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0,
			long f = 0) noexcept
{
	register long r10 asm("r10") = d;
	register long r8 asm("r8") = e;
	register long r9 asm("r9") = f;
	long result;

	asm volatile("syscall"
		     : "=a"(result)
		     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return result;
}

/** True if raw_syscall() returned a negative errno. */
inline bool is_error(long result) noexcept
{
	return result < 0 && result >= -4095;
}

/** A pointer as a system call argument. */
inline long arg(const volatile void *pointer) noexcept
{
	return reinterpret_cast<long>(pointer);
}

} // namespace memslot_run
