/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The kernel's own selftest harness, and a main() that can list its tests and
 * run a single one: the harness of 6.1 can do neither.
 * Included by exactly one file of a program.
 */
#ifndef MEMSLOT_SELFTEST_HARNESS_H
#define MEMSLOT_SELFTEST_HARNESS_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <stdio.h>

#include <kselftest.h>

#include "helper.h"

/*
 * What the harness calls when a test begins.  The kernel's log gets the line
 * too, so that a warning there can be told to belong to a test.
 */
static void announce(const char *format, ...)
{
	static int log = -1;
	va_list arguments;
	char line[512];
	int prefix;

	prefix = snprintf(line, sizeof(line), "<6>memslot-kselftest: ");
	va_start(arguments, format);
	vsnprintf(line + prefix, sizeof(line) - prefix, format, arguments);
	va_end(arguments);
	ksft_print_msg("%s", line + prefix);
	if (log < 0)
		log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (strstr(line, " RUN ") && write(log, line, strlen(line)) < 0)
		ksft_print_msg("/dev/kmsg: %s\n", strerror(errno));
}

#define ksft_print_msg announce
#include <kselftest_harness.h>
#undef ksft_print_msg

/*
 * With @only NULL: prints the names of all tests as a run prints them, in the
 * order of the run.  Else: leaves only the test of that name to be run.
 */
static bool walk_tests(const char *only)
{
	static struct __fixture_variant_metadata none = { .name = "" };
	struct __fixture_variant_metadata *variant;
	struct __fixture_metadata *fixture;
	struct __test_metadata *test;
	char name[256];

	for (fixture = __fixture_list; fixture; fixture = fixture->next) {
		for (variant = fixture->variant ?: &none; variant; variant = variant->next) {
			for (test = fixture->tests; test; test = test->next) {
				snprintf(name, sizeof(name), "%s%s%s.%s", fixture->name,
					 variant->name[0] ? "." : "", variant->name,
					 test->name);
				if (!only) {
					puts(name);
				} else if (!strcmp(name, only)) {
					__fixture_list = fixture;
					fixture->next = NULL;
					if (fixture->variant)
						fixture->variant = variant;
					variant->next = NULL;
					fixture->tests = test;
					test->next = NULL;
					return true;
				}
			}
		}
	}
	return !only;
}

/* A test has 30 seconds, or what it says, on a quiet machine; on another one it has more. */
static void allow_for_slowness(void)
{
	const char *slowness = getenv("MEMSLOT_SLOWNESS");
	struct __fixture_metadata *fixture;
	struct __test_metadata *test;

	for (fixture = __fixture_list; slowness && fixture; fixture = fixture->next)
		for (test = fixture->tests; test; test = test->next)
			test->timeout *= atoi(slowness);
}

/*
 * The first VM and the first vCPU without a local APIC, and the end of the
 * last, make KVM patch the kernel's text.  Under QEMU's emulation a CPU now and
 * then goes on executing what was there before, for ever (seen with 7.2: it
 * takes one INT3 after the other where there is none).  So one is always there.
 */
static void hold_a_vm(void)
{
	static struct vm vm;

	if (!vm_create(&vm, 1, 0, POOL_SMALL_PAGES))
		exit(KSFT_FAIL);
}

int main(int argc, char **argv)
{
	/* What a lost VM said last must not stay in a buffer. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 2 && !strcmp(argv[1], "--list"))
		return !walk_tests(NULL);
	if (argc > 2 || (argc == 2 && !walk_tests(argv[1]))) {
		fprintf(stderr, "usage: %s [--list | TEST]\n", argv[0]);
		return 2;
	}
	allow_for_slowness();
	hold_a_vm();
	return test_harness_run(argc, argv);
}

#endif /* MEMSLOT_SELFTEST_HARNESS_H */
