/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What all memslot selftests share: a VM whose guest tells which host memory
 * it finds behind each gfn, a model of the layout to compare that with, and
 * the ioctls of /dev/memslot as functions.
 *
 * Functions that return bool print what went wrong and return false.
 * Functions that return int return 0 or a negative errno.
 */
#ifndef MEMSLOT_SELFTEST_HELPER_H
#define MEMSLOT_SELFTEST_HELPER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <linux/kvm.h>
#include <linux/memslot.h>

#define DEVICE "/dev/memslot"
#define PAGE 4096ULL
#define HUGE_PAGE (512 * PAGE)

/*
 * Sizes of the first version of each struct.  Callers that were built with it
 * stay valid for ever, so these numbers never change.
 */
#define INFO_FIRST_SIZE 32U
#define BIND_FIRST_SIZE 24U
#define ENTRY_FIRST_SIZE 40U
#define STAGE_FIRST_SIZE 32U
#define COMMIT_FIRST_SIZE 120U
#define RESET_FIRST_SIZE 8U
#define QUERY_FIRST_SIZE 40U

/* Guest memory that is always there, in both address spaces, by this slot */
#define GUEST_SLOT 500
#define GUEST_SIZE (16 * PAGE)
#define GUEST_CODE 0x0000
#define GUEST_STACKS 0x2000
#define GUEST_COUNTERS 0x2000
#define GUEST_RESULTS 0x4000

/* Where tests put their slots; nothing else is there */
#define WINDOW (16 * 1024 * 1024ULL)
#define WINDOW_MAX_PAGES 8192U

/* What a scan says of a gfn that has no slot */
#define HOLE 0xffffffffU

#define VM_MAX_VCPUS 32
#define VM_MAX_SLOTS 1100

enum pool_kind {
	POOL_SMALL_PAGES,
	POOL_HUGE_PAGES,
};

/**
 * struct vm - a VM, the file that changes its memory, and the model
 * @fd: the VM, or -1
 * @device: an open file of /dev/memslot that is bound to it, or -1
 * @vcpus: number of vCPUs
 * @vcpu: vCPU n is in address space n % 2: the odd ones are in SMM
 * @run: what KVM_RUN fills in
 * @guest: host address of GUEST_SLOT
 * @pool: host memory to make slots of; page n has n + 1 as its first word
 * @pool_pages: its size
 * @window_pages: how many gfns from WINDOW on the model speaks of
 * @slots: the model of the layout
 * @nr_slots: number of @slots
 * @mmio_writes: writes of the last vm_store() that found no writable memory
 */
struct vm {
	int fd;
	int device;
	unsigned int vcpus;
	int vcpu[VM_MAX_VCPUS];
	struct kvm_run *run[VM_MAX_VCPUS];
	size_t run_size;
	unsigned char *guest;
	unsigned char *pool;
	unsigned int pool_pages;
	unsigned int window_pages;
	struct memslot_entry slots[VM_MAX_SLOTS];
	unsigned int nr_slots;
	unsigned int mmio_writes;
};

/**
 * struct expectation - what the model says a commit reports
 */
struct expectation {
	__u32 strategy;
	__u32 park_cause;
	__u32 created;
	__u32 deleted;
	__u32 replaced;
	__u32 moved;
	__u32 reflagged;
	__u32 touched;
	bool moves_log; /* not in the reply: why it parks */
	__u64 pages_kept;
	__u64 pages_remapped;
	__u64 pages_removed;
	__u64 pages_added;
	__u32 uncovered; /* ranges that lose their slot, each of one slot */
};

/* The ioctls of /dev/memslot; out fields are poisoned before the call. */
int device_open(void);
int device_bind(int device, int vm_fd, struct memslot_bind *reply);
int device_stage(int device, const struct memslot_entry *entries, unsigned int count,
		 struct memslot_stage *reply);
int device_commit(int device, __u32 flags, const struct memslot_entry *entries,
		  unsigned int count, struct memslot_commit *reply);
int device_reset(int device);
int device_query(int device, __u32 address_space, struct memslot_entry *entries,
		 unsigned int count, struct memslot_query *reply);

/* A commit without entries, for tests that set its fields themselves. */
struct memslot_commit empty_commit(__u32 flags);
int device_commit_with(int device, struct memslot_commit *commit,
		       const struct memslot_entry *entries, unsigned int count);

/* ioctl() as a function that returns 0, a positive result or a negative errno. */
int call_ioctl(int fd, unsigned long request, void *argument);

/* A page that is not there until its userfaultfd provides it.  Returns that, or -1. */
int page_to_come(unsigned char **page);

/* A VM without the module, and its parts. */
bool vm_create(struct vm *vm, unsigned int vcpus, unsigned int pool_pages, enum pool_kind kind);
bool vm_create_vcpus(struct vm *vm, unsigned int vcpus);
bool vm_create_bare(struct vm *vm, unsigned int pool_pages, enum pool_kind kind);
bool vm_bind(struct vm *vm);
void vm_destroy(struct vm *vm);

/* Entries over the pool: @pages pages at WINDOW + @at, from pool page @from on. */
struct memslot_entry vm_region(const struct vm *vm, __u32 slot, unsigned int at,
			       unsigned int pages, unsigned int from);
struct memslot_entry in_smm(struct memslot_entry entry);
struct memslot_entry with_flags(struct memslot_entry entry, __u32 flags);
struct memslot_entry absent(__u32 slot);

/* KVM's own ioctl with what an entry says; the model follows when it succeeds. */
int vm_set_region(struct vm *vm, const struct memslot_entry *entry);
int kvm_set_region(int vm_fd, const struct memslot_entry *entry);

/*
 * The guest reads the first word of each page, or of each @step'th (HOLE where
 * there is no memory); and it writes.
 */
bool vm_scan(struct vm *vm, unsigned int vcpu, __u64 gpa, unsigned int pages, __u32 *words);
bool vm_scan_some(struct vm *vm, unsigned int vcpu, __u64 gpa, unsigned int pages,
		  unsigned int step, __u32 *words);
bool vm_store(struct vm *vm, unsigned int vcpu, __u64 gpa, unsigned int pages, __u32 value);
bool vm_store_slowly(struct vm *vm, unsigned int vcpu, __u64 gpa, unsigned int pages,
		     __u32 value);
void vm_set_registers(struct vm *vm, unsigned int vcpu, const void *routine, __u64 gpa,
		      __u32 pages, __u32 value, __u32 destination);
extern const unsigned char guest_start[], guest_end[];
extern const unsigned char guest_scan[], guest_store[], guest_store_slowly[];
extern const unsigned char guest_spin[], guest_count[], guest_emulate[];

/* The model. */
const struct memslot_entry *model_find(const struct vm *vm, __u32 address_space, __u32 slot);
void model_apply(struct vm *vm, const struct memslot_entry *entries, unsigned int count);
void model_expect(const struct vm *vm, const struct memslot_entry *entries, unsigned int count,
		  struct expectation *expectation);

/* Does the guest find in the window just what the model says, in each address space? */
bool vm_check(struct vm *vm);

/* Does the reply report what was expected of it? */
bool reply_matches(const struct memslot_commit *reply, const struct expectation *expectation);

/*
 * Commits a batch that the model holds to be valid: TEST_ONLY first, then in
 * earnest, comparing both replies and then guest memory with the model.
 */
bool vm_apply(struct vm *vm, const struct memslot_entry *entries, unsigned int count,
	      struct memslot_commit *reply);

/* KVM's generations, by an empty commit. */
bool vm_generations(const struct vm *vm, __u64 generations[MEMSLOT_MAX_ADDRESS_SPACES]);

/* A statistic of the VM, from KVM's binary interface; -1 if there is none. */
long vm_statistic(const struct vm *vm, const char *name);

/* How the loaded KVM works. */
bool kvm_has_tdp_mmu(void);
bool kvm_can_nest(void);
/* How many a commit waits for that takes memory away and does not park */
unsigned int grace_periods_of_removal(void);
bool kvm_faults_see_signals(void);
long kvm_module_users(void);
long memslot_module_users(void);

/*
 * vCPU threads, in guest_spin, guest_count or guest_emulate.  One that finds no memory, or
 * leaves KVM_RUN for anything but a signal, ends as failed.
 */
struct spinner {
	struct vm *vm;
	unsigned int vcpu;
	pthread_t thread;
	int stop;
	int failed;
	unsigned int interrupted;
};

bool spinner_start(struct spinner *spinner, struct vm *vm, unsigned int vcpu,
		   const void *routine, __u64 gpa, unsigned int pages);
bool spinner_stop(struct spinner *spinner);
__u32 spinner_rounds(const struct spinner *spinner);
bool spinner_progresses(const struct spinner *spinner, __u32 rounds);
unsigned int spinner_interrupted(const struct spinner *spinner);

double seconds(void);
double patience(void);
bool thread_sleeps(pid_t tid);

#endif /* MEMSLOT_SELFTEST_HELPER_H */
