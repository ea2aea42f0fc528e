// SPDX-License-Identifier: GPL-2.0
/*
 * A library to preload: some of a program's calls of /dev/memslot fail, before the device sees
 * them.
 *
 * REFUSE="CALL FIRST LAST ERRNO": CALL is bind or commit; the FIRST to LAST of these calls, counted
 * from 1, fail with ERRNO, a number.
 */

#include <dlfcn.h>
#include <errno.h>
#include <linux/memslot.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static atomic_int nr_calls;

static int refusal(unsigned long request)
{
	const char *wanted = getenv("REFUSE");
	char name[8];
	int first, last, error, nr;

	if (!wanted || sscanf(wanted, "%7s %d %d %d", name, &first, &last, &error) != 4)
		abort();
	if (request != (strcmp(name, "bind") ? MEMSLOT_IOC_COMMIT : MEMSLOT_IOC_BIND))
		return 0;
	nr = atomic_fetch_add(&nr_calls, 1) + 1;
	return nr >= first && nr <= last ? error : 0;
}

int ioctl(int fd, unsigned long request, ...)
{
	int (*real)(int fd, unsigned long request, ...) = dlsym(RTLD_NEXT, "ioctl");
	int error = refusal(request);
	va_list arguments;
	void *argument;

	if (error) {
		errno = error;
		return -1;
	}
	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	return real(fd, request, argument);
}
