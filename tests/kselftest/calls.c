// SPDX-License-Identifier: GPL-2.0
/* The ioctls of /dev/memslot and others as functions, and what sysfs says of KVM. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "helper.h"

/* Out fields that a call forgets are then never right by chance. */
#define POISON 0xa5

double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/*
 * Seconds that anything is waited for.  It only ends what hangs, so it is far more
 * than anything takes, on a machine as slow as MEMSLOT_SLOWNESS says; but less than
 * a test may take.
 */
double patience(void)
{
	const char *slowness = getenv("MEMSLOT_SLOWNESS");

	return 20.0 * (slowness ? atoi(slowness) : 1);
}

/* Whether a thread of this process sleeps, in an ioctl for example. */
bool thread_sleeps(pid_t tid)
{
	const char *state = NULL;
	char path[64], line[512];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	file = fopen(path, "re");
	if (file && fgets(line, sizeof(line), file))
		state = strrchr(line, ')');
	if (file)
		fclose(file);
	return state && (state[2] == 'S' || state[2] == 'D');
}

int call_ioctl(int fd, unsigned long request, void *argument)
{
	int result = ioctl(fd, request, argument);

	return result < 0 ? -errno : result;
}

int page_to_come(unsigned char **page)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range.len = PAGE,
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	const int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	*page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	range.range.start = (unsigned long)*page;
	if (fd < 0 || *page == MAP_FAILED || ioctl(fd, UFFDIO_API, &api) ||
	    ioctl(fd, UFFDIO_REGISTER, &range)) {
		fprintf(stderr, "# userfaultfd: %s\n", strerror(errno));
		return -1;
	}
	return fd;
}

int device_open(void)
{
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int device_bind(int device, int vm_fd, struct memslot_bind *reply)
{
	memset(reply, POISON, sizeof(*reply));
	reply->size = sizeof(*reply);
	reply->flags = 0;
	reply->vm_fd = vm_fd;
	reply->reserved = 0;
	return call_ioctl(device, MEMSLOT_IOC_BIND, reply);
}

int device_stage(int device, const struct memslot_entry *entries, unsigned int count,
		 struct memslot_stage *reply)
{
	memset(reply, POISON, sizeof(*reply));
	reply->size = sizeof(*reply);
	reply->flags = 0;
	reply->entries = (unsigned long)entries;
	reply->count = count;
	reply->entry_size = sizeof(*entries);
	return call_ioctl(device, MEMSLOT_IOC_STAGE, reply);
}

int device_commit(int device, __u32 flags, const struct memslot_entry *entries,
		  unsigned int count, struct memslot_commit *reply)
{
	*reply = empty_commit(flags);
	return device_commit_with(device, reply, entries, count);
}

struct memslot_commit empty_commit(__u32 flags)
{
	struct memslot_commit commit;

	memset(&commit, POISON, sizeof(commit));
	commit.size = sizeof(commit);
	commit.flags = flags;
	memset(commit.if_generation, 0, sizeof(commit.if_generation));
	commit.replace_spaces = 0;
	commit.reserved = 0;
	return commit;
}

int device_commit_with(int device, struct memslot_commit *commit,
		       const struct memslot_entry *entries, unsigned int count)
{
	commit->entries = (unsigned long)entries;
	commit->count = count;
	commit->entry_size = sizeof(*entries);
	return call_ioctl(device, MEMSLOT_IOC_COMMIT, commit);
}

int device_query(int device, __u32 address_space, struct memslot_entry *entries,
		 unsigned int count, struct memslot_query *reply)
{
	memset(reply, POISON, sizeof(*reply));
	memset(entries, POISON, count * sizeof(*entries));
	reply->size = sizeof(*reply);
	reply->flags = 0;
	reply->entries = (unsigned long)entries;
	reply->count = count;
	reply->entry_size = sizeof(*entries);
	reply->address_space = address_space;
	return call_ioctl(device, MEMSLOT_IOC_QUERY, reply);
}

int device_reset(int device)
{
	struct memslot_reset reset = { .size = sizeof(reset) };

	return call_ioctl(device, MEMSLOT_IOC_RESET, &reset);
}

/* The first word of a file in /sys; false if there is no such file. */
static bool read_parameter(const char *path, char *word, size_t size)
{
	FILE *file = fopen(path, "re");
	bool ok;

	if (!file)
		return false;
	ok = fgets(word, size, file);
	fclose(file);
	return ok;
}

static bool parameter_is_on(const char *path)
{
	char word[32];

	return read_parameter(path, word, sizeof(word)) && (word[0] == 'Y' || word[0] == '1');
}

bool kvm_has_tdp_mmu(void)
{
	return (parameter_is_on("/sys/module/kvm_amd/parameters/npt") ||
		parameter_is_on("/sys/module/kvm_intel/parameters/ept")) &&
	       parameter_is_on("/sys/module/kvm/parameters/tdp_mmu");
}

bool kvm_can_nest(void)
{
	return parameter_is_on("/sys/module/kvm_amd/parameters/nested") ||
	       parameter_is_on("/sys/module/kvm_intel/parameters/nested");
}

unsigned int grace_periods_of_removal(void)
{
	return kvm_has_tdp_mmu() && kvm_can_nest() ? 2 : 1;
}

/* Since 6.2 KVM_RUN ends with EINTR in a page fault that sleeps. */
bool kvm_faults_see_signals(void)
{
	struct utsname system;
	int major, minor;

	if (uname(&system) || sscanf(system.release, "%d.%d", &major, &minor) != 2)
		return false;
	return major > 6 || (major == 6 && minor >= 2);
}

long kvm_module_users(void)
{
	char word[32];

	if (read_parameter("/sys/module/kvm_amd/refcnt", word, sizeof(word)) ||
	    read_parameter("/sys/module/kvm_intel/refcnt", word, sizeof(word)))
		return atol(word);
	return -1;
}

long memslot_module_users(void)
{
	char word[32];

	return read_parameter("/sys/module/memslot/refcnt", word, sizeof(word)) ? atol(word) : -1;
}
