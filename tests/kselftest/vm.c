// SPDX-License-Identifier: GPL-2.0
/* A VM whose guest reads and writes memory on command. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "helper.h"

#define RET_INSTRUCTION 0xc3
#define RET_OFFSET 16
#define COUNTER_STRIDE 64
#define STACK_SIZE 64 /* of which a call of guest_spin needs 4 */

static bool failed(const char *what)
{
	fprintf(stderr, "# %s: %s\n", what, strerror(errno));
	return false;
}

/* Page n begins with n + 1 and has a RET for guest_spin. */
static bool create_pool(struct vm *vm, unsigned int pages, enum pool_kind kind)
{
	size_t size = pages * PAGE;
	unsigned char *area;
	unsigned int page;

	area = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		return failed("mmap of the pool");
	vm->pool = (void *)(((unsigned long)area + HUGE_PAGE - 1) & -HUGE_PAGE);
	vm->pool_pages = pages;
	if (madvise(vm->pool, size,
		    kind == POOL_HUGE_PAGES ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		return failed("madvise of the pool");
	for (page = 0; page < pages; page++) {
		*(__u32 *)(vm->pool + page * PAGE) = page + 1;
		vm->pool[page * PAGE + RET_OFFSET] = RET_INSTRUCTION;
	}
	return true;
}

static bool create_guest_memory(struct vm *vm)
{
	struct memslot_entry entry = {
		.slot = GUEST_SLOT,
		.memory_size = GUEST_SIZE,
	};

	vm->guest = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (vm->guest == MAP_FAILED)
		return failed("mmap of guest memory");
	memcpy(vm->guest + GUEST_CODE, guest_start, guest_end - guest_start);

	entry.userspace_addr = (unsigned long)vm->guest;
	errno = -vm_set_region(vm, &entry);
	if (errno)
		return failed("slot of the guest");
	entry = in_smm(entry);
	errno = -vm_set_region(vm, &entry);
	if (errno)
		return failed("slot of the guest in SMM");
	return true;
}

static struct kvm_segment flat_segment(unsigned int type, unsigned int selector)
{
	return (struct kvm_segment){
		.limit = 0xffffffff,
		.selector = selector,
		.type = type,
		.present = 1,
		.db = 1,
		.s = 1,
		.g = 1,
	};
}

static bool set_up_vcpu(const struct vm *vm, unsigned int index)
{
	const struct kvm_segment data = flat_segment(3, 0x10);
	struct kvm_vcpu_events events;
	struct kvm_sregs sregs;
	int fd = vm->vcpu[index];

	if (ioctl(fd, KVM_GET_SREGS, &sregs))
		return failed("KVM_GET_SREGS");
	sregs.cs = flat_segment(11, 0x08);
	sregs.ds = data;
	sregs.es = data;
	sregs.ss = data;
	sregs.cr0 |= 1; /* protected mode */
	if (ioctl(fd, KVM_SET_SREGS, &sregs))
		return failed("KVM_SET_SREGS");
	if (index % MEMSLOT_MAX_ADDRESS_SPACES == 0)
		return true;
	if (ioctl(fd, KVM_GET_VCPU_EVENTS, &events))
		return failed("KVM_GET_VCPU_EVENTS");
	events.flags |= KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = 1;
	if (ioctl(fd, KVM_SET_VCPU_EVENTS, &events))
		return failed("KVM_SET_VCPU_EVENTS (SMM)");
	return true;
}

bool vm_create_vcpus(struct vm *vm, unsigned int vcpus)
{
	const unsigned int first = vm->vcpus;
	unsigned int i;

	for (i = first; i < first + vcpus; i++) {
		vm->vcpu[i] = ioctl(vm->fd, KVM_CREATE_VCPU, i);
		if (vm->vcpu[i] < 0)
			return failed("KVM_CREATE_VCPU");
		vm->vcpus++;
		vm->run[i] = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
				  vm->vcpu[i], 0);
		if (vm->run[i] == MAP_FAILED)
			return failed("mmap of struct kvm_run");
		if (!set_up_vcpu(vm, i))
			return false;
	}
	return true;
}

bool vm_create_bare(struct vm *vm, unsigned int pool_pages, enum pool_kind kind)
{
	const unsigned long tss = 0xfffbd000;
	int kvm, size;

	memset(vm, 0, sizeof(*vm));
	vm->device = -1;
	vm->fd = -1;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		return failed("/dev/kvm");
	vm->fd = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm->fd < 0)
		return failed("KVM_CREATE_VM");
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (size < 0)
		return failed("KVM_GET_VCPU_MMAP_SIZE");
	vm->run_size = size;
	close(kvm);
	/* Intel needs it to run without paging; elsewhere it does nothing. */
	if (ioctl(vm->fd, KVM_SET_TSS_ADDR, tss))
		return failed("KVM_SET_TSS_ADDR");
	return create_guest_memory(vm) && create_pool(vm, pool_pages, kind);
}

bool vm_create(struct vm *vm, unsigned int vcpus, unsigned int pool_pages, enum pool_kind kind)
{
	return vm_create_bare(vm, pool_pages, kind) && vm_create_vcpus(vm, vcpus);
}

bool vm_bind(struct vm *vm)
{
	struct memslot_bind reply;

	errno = 0;
	vm->device = device_open();
	if (vm->device < 0) {
		errno = -vm->device;
		return failed(DEVICE);
	}
	errno = -device_bind(vm->device, vm->fd, &reply);
	return errno ? failed("MEMSLOT_IOC_BIND") : true;
}

void vm_destroy(struct vm *vm)
{
	unsigned int i;

	for (i = 0; i < vm->vcpus; i++) {
		munmap(vm->run[i], vm->run_size);
		close(vm->vcpu[i]);
	}
	vm->vcpus = 0;
	if (vm->fd >= 0)
		close(vm->fd);
	if (vm->device >= 0)
		close(vm->device);
	vm->fd = -1;
	vm->device = -1;
}

int kvm_set_region(int vm_fd, const struct memslot_entry *entry)
{
	struct kvm_userspace_memory_region region = {
		.slot = entry->slot | entry->address_space << 16,
		.flags = entry->flags,
		.guest_phys_addr = entry->guest_phys_addr,
		.memory_size = entry->memory_size,
		.userspace_addr = entry->userspace_addr,
	};

	return call_ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region);
}

int vm_set_region(struct vm *vm, const struct memslot_entry *entry)
{
	int err = kvm_set_region(vm->fd, entry);

	if (!err)
		model_apply(vm, entry, 1);
	return err;
}

/*
 * Bit 1 is always set.  Bit 9: interrupts are enabled, though none comes, for
 * Bochs gives the host no interrupt while a guest runs that has them disabled.
 */
#define RFLAGS (1 << 1 | 1 << 9)

void vm_set_registers(struct vm *vm, unsigned int vcpu, const void *routine, __u64 gpa,
		      __u32 pages, __u32 value, __u32 destination)
{
	struct kvm_regs regs = {
		.rip = GUEST_CODE + ((const unsigned char *)routine - guest_start),
		.rsi = gpa,
		.rcx = pages,
		.rax = value,
		.rdi = destination,
		.rsp = GUEST_STACKS - vcpu * STACK_SIZE,
		.rflags = RFLAGS,
	};

	if (ioctl(vm->vcpu[vcpu], KVM_SET_REGS, &regs))
		failed("KVM_SET_REGS");
}

/* Runs until HLT; accesses that find no memory are answered with HOLE. */
static bool run_to_halt(struct vm *vm, unsigned int vcpu)
{
	struct kvm_run *run = vm->run[vcpu];
	const __u32 hole = HOLE;

	for (;;) {
		if (ioctl(vm->vcpu[vcpu], KVM_RUN, 0)) {
			if (errno == EINTR)
				continue;
			return failed("KVM_RUN");
		}
		switch (run->exit_reason) {
		case KVM_EXIT_HLT:
			return true;
		case KVM_EXIT_MMIO:
			if (run->mmio.is_write)
				vm->mmio_writes++;
			else
				memcpy(run->mmio.data, &hole, sizeof(hole));
			break;
		default:
			fprintf(stderr, "# vCPU %u: unexpected exit %u\n", vcpu,
				run->exit_reason);
			return false;
		}
	}
}

bool vm_scan(struct vm *vm, unsigned int vcpu, __u64 gpa, unsigned int pages, __u32 *words)
{
	return vm_scan_some(vm, vcpu, gpa, pages, 1, words);
}

bool vm_scan_some(struct vm *vm, unsigned int vcpu, __u64 gpa, unsigned int pages,
		  unsigned int step, __u32 *words)
{
	vm_set_registers(vm, vcpu, guest_scan, gpa, pages, step * PAGE, GUEST_RESULTS);
	if (!run_to_halt(vm, vcpu))
		return false;
	memcpy(words, vm->guest + GUEST_RESULTS, pages * sizeof(*words));
	return true;
}

static bool store(struct vm *vm, unsigned int vcpu, const void *routine, __u64 gpa,
		  unsigned int pages, __u32 value)
{
	vm->mmio_writes = 0;
	vm_set_registers(vm, vcpu, routine, gpa, pages, value, 0);
	return run_to_halt(vm, vcpu);
}

bool vm_store(struct vm *vm, unsigned int vcpu, __u64 gpa, unsigned int pages, __u32 value)
{
	return store(vm, vcpu, guest_store, gpa, pages, value);
}

bool vm_store_slowly(struct vm *vm, unsigned int vcpu, __u64 gpa, unsigned int pages,
		     __u32 value)
{
	return store(vm, vcpu, guest_store_slowly, gpa, pages, value);
}

long vm_statistic(const struct vm *vm, const char *name)
{
	const int fd = ioctl(vm->fd, KVM_GET_STATS_FD, NULL);
	struct kvm_stats_header header;
	struct {
		struct kvm_stats_desc desc;
		char name[256];
	} entry;
	__u64 value;
	__u32 i;

	if (fd < 0 || pread(fd, &header, sizeof(header), 0) != sizeof(header) ||
	    header.name_size > sizeof(entry.name))
		goto none;
	for (i = 0; i < header.num_desc; i++) {
		const size_t size = sizeof(entry.desc) + header.name_size;

		if (pread(fd, &entry, size, header.desc_offset + i * size) != size)
			goto none;
		if (strcmp(entry.name, name))
			continue;
		if (pread(fd, &value, sizeof(value), header.data_offset + entry.desc.offset) !=
		    sizeof(value))
			goto none;
		close(fd);
		return value;
	}
none:
	close(fd);
	return -1;
}

static void do_nothing(int signal)
{
}

static void *spin(void *argument)
{
	struct spinner *spinner = argument;
	struct vm *vm = spinner->vm;
	const struct kvm_run *run = vm->run[spinner->vcpu];

	while (!__atomic_load_n(&spinner->stop, __ATOMIC_SEQ_CST)) {
		if (!ioctl(vm->vcpu[spinner->vcpu], KVM_RUN, 0)) {
			spinner->failed = 1;
			fprintf(stderr, "# vCPU %u left its loop: exit %u, address 0x%llx\n",
				spinner->vcpu, run->exit_reason,
				run->exit_reason == KVM_EXIT_MMIO ? run->mmio.phys_addr : 0);
			break;
		}
		if (errno != EINTR) {
			spinner->failed = 1;
			failed("KVM_RUN");
			break;
		}
		if (!__atomic_load_n(&spinner->stop, __ATOMIC_SEQ_CST))
			__atomic_add_fetch(&spinner->interrupted, 1, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

__u32 spinner_rounds(const struct spinner *spinner)
{
	const unsigned char *counter = spinner->vm->guest + GUEST_COUNTERS +
				       spinner->vcpu * COUNTER_STRIDE;

	return __atomic_load_n((const __u32 *)counter, __ATOMIC_SEQ_CST);
}

static bool gets_on(const struct spinner *spinner, __u32 start, __u32 rounds)
{
	const double deadline = seconds() + patience();

	while (spinner_rounds(spinner) - start < rounds) {
		if (seconds() > deadline) {
			fprintf(stderr, "# vCPU %u does not get on\n", spinner->vcpu);
			return false;
		}
		usleep(200);
	}
	return true;
}

bool spinner_progresses(const struct spinner *spinner, __u32 rounds)
{
	return gets_on(spinner, spinner_rounds(spinner), rounds);
}

unsigned int spinner_interrupted(const struct spinner *spinner)
{
	return __atomic_load_n(&spinner->interrupted, __ATOMIC_SEQ_CST);
}

bool spinner_start(struct spinner *spinner, struct vm *vm, unsigned int vcpu,
		   const void *routine, __u64 gpa, unsigned int pages)
{
	struct sigaction action = { .sa_handler = do_nothing };
	__u32 start;

	*spinner = (struct spinner){ .vm = vm, .vcpu = vcpu };
	/* A guest that halts counts once, and may have done so when pthread_create() returns. */
	start = spinner_rounds(spinner);
	sigaction(SIGUSR1, &action, NULL);
	vm_set_registers(vm, vcpu, routine, gpa, pages, 0,
			 GUEST_COUNTERS + vcpu * COUNTER_STRIDE);
	errno = pthread_create(&spinner->thread, NULL, spin, spinner);
	if (errno)
		return failed("pthread_create");
	return gets_on(spinner, start, 1);
}

bool spinner_stop(struct spinner *spinner)
{
	struct kvm_run *run = spinner->vm->run[spinner->vcpu];

	__atomic_store_n(&spinner->stop, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(spinner->thread, SIGUSR1);
	pthread_join(spinner->thread, NULL);
	run->immediate_exit = 0;
	return !spinner->failed;
}
