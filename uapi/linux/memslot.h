/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * memslot: atomic batches of KVM memory-slot changes.
 *
 * All ioctls of /dev/memslot follow the same rules:
 *
 *  - Every argument is a struct that begins with @size (in bytes, set by the
 *    caller to what it was compiled with) and @flags.  A caller built with an
 *    older header passes a shorter struct and gets a shorter reply; one built
 *    with a newer header passes a longer struct, whose tail must be zero.
 *  - Fields that are said to be out are written on success and on failure, up
 *    to @size bytes.  Everything else is left as the caller wrote it.
 *  - Fields called reserved must be zero.
 *
 * Errors that any ioctl can return:
 *
 *   ENOTTY      unknown ioctl
 *   EINVAL      @size is smaller than the first version of the struct, or a
 *               reserved field is not zero
 *   E2BIG       @size is larger than this module knows and the rest is not zero
 *   EFAULT      the struct cannot be read
 *   EOPNOTSUPP  an unknown bit is set in @flags
 *   EACCES      the file is bound with MEMSLOT_BIND_QUERY_ONLY, and the ioctl
 *               would change the VM
 *   EINTR       a fatal signal is pending
 */
#ifndef _UAPI_LINUX_MEMSLOT_H
#define _UAPI_LINUX_MEMSLOT_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define MEMSLOT_IOC_TYPE 0xB9

/** MEMSLOT_MAX_ADDRESS_SPACES - most address spaces a VM has (1 is SMM) */
#define MEMSLOT_MAX_ADDRESS_SPACES 2

/** MEMSLOT_NO_ENTRY - value of failed_index when no entry is to blame */
#define MEMSLOT_NO_ENTRY 0xffffffffU

/**
 * enum memslot_reason - what exactly was wrong; refines the errno
 * @MEMSLOT_REASON_NONE: nothing was, or the errno says it all
 * @MEMSLOT_REASON_ARGUMENT: EINVAL: entry_size is too small, a reserved
 *	field or one whose flag is not set is not zero, or REPLACE_ALL names no
 *	address space; E2BIG: entry_size is above the page size
 * @MEMSLOT_REASON_UNREADABLE: EFAULT: the entry cannot be read
 * @MEMSLOT_REASON_ENTRY_TOO_NEW: E2BIG: the entry has a tail that is not zero
 * @MEMSLOT_REASON_TOO_MANY: E2BIG: more entries than memslot_info.max_entries
 * @MEMSLOT_REASON_SLOT_ID: EINVAL: slot is above memslot_info.max_slot
 * @MEMSLOT_REASON_ADDRESS_SPACE: EINVAL: the VM has no such address space
 * @MEMSLOT_REASON_FLAGS: EOPNOTSUPP: unknown entry flag, or one that this
 *	machine cannot do
 * @MEMSLOT_REASON_GPA_ALIGN: EINVAL: guest_phys_addr is not page aligned
 * @MEMSLOT_REASON_SIZE_ALIGN: EINVAL: memory_size is not page aligned
 * @MEMSLOT_REASON_HVA_ALIGN: EINVAL: userspace_addr is not page aligned
 * @MEMSLOT_REASON_HVA_RANGE: EINVAL: not a range of untagged user addresses
 * @MEMSLOT_REASON_GPA_RANGE: EINVAL: guest_phys_addr + memory_size wraps, or
 *	lies above what the VM can address
 * @MEMSLOT_REASON_TOO_LARGE: EINVAL: more than 2^31 - 1 pages in one slot
 * @MEMSLOT_REASON_DUPLICATE: EINVAL: an earlier entry names the same slot
 * @MEMSLOT_REASON_NO_SLOT: ENOENT: the slot to delete does not exist
 * @MEMSLOT_REASON_OVERLAP_ENTRY: EEXIST: overlaps another entry of the batch
 * @MEMSLOT_REASON_OVERLAP_SLOT: EEXIST: overlaps a slot that stays (it may be
 *	one of KVM's own)
 * @MEMSLOT_REASON_GUEST_MEMFD: EOPNOTSUPP: the slot has a guest_memfd
 * @MEMSLOT_REASON_NOT_BOUND: ENOTCONN: no VM was bound to this file
 * @MEMSLOT_REASON_BOUND: EBUSY: a VM was already bound to this file
 * @MEMSLOT_REASON_NOT_KVM: EINVAL: vm_fd is not a KVM virtual machine
 * @MEMSLOT_REASON_OWNER: EIO: the VM belongs to another process
 * @MEMSLOT_REASON_DEAD: EIO: the VM is dead
 * @MEMSLOT_REASON_VM_TYPE: EOPNOTSUPP: encrypted or protected VM
 * @MEMSLOT_REASON_PAGE_TRACK: EOPNOTSUPP: another module (KVMGT) tracks the
 *	VM's pages
 * @MEMSLOT_REASON_MEMORY: ENOMEM: out of memory for this entry
 * @MEMSLOT_REASON_PARK_TIMEOUT: EBUSY: a vCPU did not leave KVM_RUN in time
 * @MEMSLOT_REASON_LOCKED: EBUSY: another ioctl on this file or on the VM (a change
 *	of its slots, reading of its dirty log, creating a vCPU, one of Xen's) did not
 *	let go of what the commit needs in time
 * @MEMSLOT_REASON_GENERATION: ESTALE: the layout of an address space is not the
 *	one of if_generation any more
 * @MEMSLOT_REASON_BITMAP_ALIGN: EINVAL: dirty_bitmap is not a multiple of 8
 * @MEMSLOT_REASON_BITMAP_SIZE: EINVAL: dirty_bitmap_size is too small for the
 *	slot, not a multiple of 8, or given without dirty_bitmap; E2BIG: all
 *	buffers of the batch together are above 64 MiB
 * @MEMSLOT_REASON_BITMAP_UNWRITABLE: EFAULT: dirty_bitmap cannot be written
 * @MEMSLOT_REASON_BITMAP_LOCKED: ENOMEM: the buffers are above RLIMIT_MEMLOCK
 * @MEMSLOT_REASON_NO_DIRTY_LOG: EINVAL: a buffer for the last dirty bitmap, but
 *	the slot has no dirty log, or keeps it (the entry changes nothing)
 * @MEMSLOT_REASON_DIRTY_RING: EOPNOTSUPP: the VM has dirty rings, no bitmaps
 * @MEMSLOT_REASON_QUERY_ONLY: EACCES: bound with MEMSLOT_BIND_QUERY_ONLY
 * @MEMSLOT_REASON_NO_ROOM: ENOSPC: more slots than the caller has room for
 */
enum memslot_reason {
	MEMSLOT_REASON_NONE = 0,
	MEMSLOT_REASON_ARGUMENT,
	MEMSLOT_REASON_UNREADABLE,
	MEMSLOT_REASON_ENTRY_TOO_NEW,
	MEMSLOT_REASON_TOO_MANY,
	MEMSLOT_REASON_SLOT_ID,
	MEMSLOT_REASON_ADDRESS_SPACE,
	MEMSLOT_REASON_FLAGS,
	MEMSLOT_REASON_GPA_ALIGN,
	MEMSLOT_REASON_SIZE_ALIGN,
	MEMSLOT_REASON_HVA_ALIGN,
	MEMSLOT_REASON_HVA_RANGE,
	MEMSLOT_REASON_GPA_RANGE,
	MEMSLOT_REASON_TOO_LARGE,
	MEMSLOT_REASON_DUPLICATE,
	MEMSLOT_REASON_NO_SLOT,
	MEMSLOT_REASON_OVERLAP_ENTRY,
	MEMSLOT_REASON_OVERLAP_SLOT,
	MEMSLOT_REASON_GUEST_MEMFD,
	MEMSLOT_REASON_NOT_BOUND,
	MEMSLOT_REASON_BOUND,
	MEMSLOT_REASON_NOT_KVM,
	MEMSLOT_REASON_OWNER,
	MEMSLOT_REASON_DEAD,
	MEMSLOT_REASON_VM_TYPE,
	MEMSLOT_REASON_PAGE_TRACK,
	MEMSLOT_REASON_MEMORY,
	MEMSLOT_REASON_PARK_TIMEOUT,
	MEMSLOT_REASON_LOCKED,
	MEMSLOT_REASON_GENERATION,
	MEMSLOT_REASON_BITMAP_ALIGN,
	MEMSLOT_REASON_BITMAP_SIZE,
	MEMSLOT_REASON_BITMAP_UNWRITABLE,
	MEMSLOT_REASON_BITMAP_LOCKED,
	MEMSLOT_REASON_NO_DIRTY_LOG,
	MEMSLOT_REASON_DIRTY_RING,
	MEMSLOT_REASON_QUERY_ONLY,
	MEMSLOT_REASON_NO_ROOM,
};

/**
 * enum memslot_strategy - how a commit kept vCPUs from seeing a mixture
 * @MEMSLOT_STRATEGY_NONE: the batch changed nothing
 * @MEMSLOT_STRATEGY_FENCE: vCPUs ran on; page faults in the range that the batch
 *	changes waited
 * @MEMSLOT_STRATEGY_PARK: every vCPU left KVM_RUN with EINTR and waited
 */
enum memslot_strategy {
	MEMSLOT_STRATEGY_NONE = 0,
	MEMSLOT_STRATEGY_FENCE = 1,
	MEMSLOT_STRATEGY_PARK = 2,
};

/**
 * enum memslot_park_cause - why a commit parked
 * @MEMSLOT_PARK_NOT: it did not
 * @MEMSLOT_PARK_REQUESTED: MEMSLOT_COMMIT_PARK was set
 * @MEMSLOT_PARK_SHADOW_PAGING: the VM's page tables are shadowed (npt=0, ept=0)
 * @MEMSLOT_PARK_NESTED: the VM has run a nested guest
 * @MEMSLOT_PARK_UNCOVERS: no commit gives this any more: memory that goes away
 *	without another in its place no longer takes vCPUs out of KVM_RUN
 * @MEMSLOT_PARK_DIRTY_LOG: a last dirty bitmap is asked for, or a slot with a
 *	dirty log is moved, and a vCPU inside KVM_RUN may have written a page that
 *	it is only about to mark
 */
enum memslot_park_cause {
	MEMSLOT_PARK_NOT = 0,
	MEMSLOT_PARK_REQUESTED,
	MEMSLOT_PARK_SHADOW_PAGING,
	MEMSLOT_PARK_NESTED,
	MEMSLOT_PARK_UNCOVERS,
	MEMSLOT_PARK_DIRTY_LOG,
};

/* Bits of memslot_info.features */
#define MEMSLOT_FEATURE_TEST_ONLY	(1ULL << 0) /* MEMSLOT_COMMIT_TEST_ONLY */
#define MEMSLOT_FEATURE_PARK		(1ULL << 1) /* MEMSLOT_COMMIT_PARK */
#define MEMSLOT_FEATURE_REPLACE_ALL	(1ULL << 2) /* MEMSLOT_COMMIT_REPLACE_ALL */
#define MEMSLOT_FEATURE_IF_GENERATION	(1ULL << 3) /* MEMSLOT_COMMIT_IF_GENERATION */
#define MEMSLOT_FEATURE_DIRTY_BITMAP	(1ULL << 4) /* memslot_entry.dirty_bitmap */
#define MEMSLOT_FEATURE_QUERY		(1ULL << 5) /* MEMSLOT_IOC_QUERY */

/**
 * struct memslot_info - ioctl(MEMSLOT_IOC_INFO)
 * @size: sizeof(struct memslot_info)
 * @flags: must be 0
 * @features: out: bits MEMSLOT_FEATURE_*
 * @max_slot: out: highest slot id, in each address space
 * @max_address_spaces: out: most address spaces a VM can have here
 * @max_entries: out: most entries of one batch, staged and inline together
 * @strategies: out: bit (1 << MEMSLOT_STRATEGY_*) for each one available
 *
 * What this module can do; needs no VM.
 */
struct memslot_info {
	__u32 size;
	__u32 flags;
	__aligned_u64 features;
	__u32 max_slot;
	__u32 max_address_spaces;
	__u32 max_entries;
	__u32 strategies;
};
#define MEMSLOT_IOC_INFO _IO(MEMSLOT_IOC_TYPE, 0)

/* Bits of memslot_bind.flags */
#define MEMSLOT_BIND_QUERY_ONLY		(1U << 0) /* for MEMSLOT_IOC_QUERY alone */

/**
 * struct memslot_bind - ioctl(MEMSLOT_IOC_BIND)
 * @size: sizeof(struct memslot_bind)
 * @flags: bits MEMSLOT_BIND_*
 * @vm_fd: what KVM_CREATE_VM returned
 * @address_spaces: out: number of address spaces of this VM
 * @reason: out: enum memslot_reason
 * @reserved: must be 0
 *
 * Binds this open file to one VM, for good.  The VM's file may be closed
 * afterwards; the VM lives until this file is closed too.
 *
 * With MEMSLOT_BIND_QUERY_ONLY the VM may be any other process's and of any
 * type: any process that has its file descriptor may look at its layout.
 *
 * Errors: EBADF (vm_fd is not open), EINVAL (not a VM), EBUSY (bound already),
 * EIO (VM of another process, or dead), EOPNOTSUPP (VM type).
 */
struct memslot_bind {
	__u32 size;
	__u32 flags;
	__s32 vm_fd;
	__u32 address_spaces;
	__u32 reason;
	__u32 reserved;
};
#define MEMSLOT_IOC_BIND _IO(MEMSLOT_IOC_TYPE, 1)

/* Bits of memslot_entry.flags: the same values as KVM's */
#define MEMSLOT_ENTRY_LOG_DIRTY_PAGES	(1U << 0) /* KVM_MEM_LOG_DIRTY_PAGES */
#define MEMSLOT_ENTRY_READONLY		(1U << 1) /* KVM_MEM_READONLY */
#define MEMSLOT_ENTRY_GUEST_MEMFD	(1U << 2) /* KVM_MEM_GUEST_MEMFD; only from QUERY */

/**
 * struct memslot_entry - the wanted final state of one slot
 * @slot: slot id, 0 ... memslot_info.max_slot
 * @address_space: 0, or 1 for system management mode
 * @flags: bits MEMSLOT_ENTRY_*
 * @reserved: must be 0
 * @guest_phys_addr: first guest physical address, bytes, page aligned
 * @memory_size: bytes, page aligned; 0 removes the slot
 * @userspace_addr: host virtual address of the first byte, page aligned
 * @dirty_bitmap: address of a buffer for the slot's last dirty bitmap, a
 *	multiple of 8; 0 for none
 * @dirty_bitmap_size: size of that buffer in bytes, a multiple of 8, at least
 *	one bit per page of today's slot; 0 without one
 *
 * A slot that exists may be given any new region and flags.  For a removal
 * @guest_phys_addr, @userspace_addr and known @flags have no meaning.  An entry
 * that equals today's slot is allowed, and changes nothing.
 *
 * The last dirty bitmap is that of the slot as it was before the commit: bit n
 * says that page n was written since the log was last read or cleared.  It may
 * be asked for where the entry removes, replaces or moves a slot with
 * MEMSLOT_ENTRY_LOG_DIRTY_PAGES, or switches that off.  Such a commit parks
 * the vCPUs, so that the bitmap is complete: all writes of vCPUs through the old
 * slot are in it (but those to pages that a nested guest's VMCS names, which
 * VMX marks when the nested guest exits).  Bits of pages that keep their host
 * address are carried to the new slot besides.
 *
 * The buffer counts as locked memory (RLIMIT_MEMLOCK) during the ioctl.
 */
struct memslot_entry {
	__u32 slot;
	__u32 address_space;
	__u32 flags;
	__u32 reserved;
	__aligned_u64 guest_phys_addr;
	__aligned_u64 memory_size;
	__aligned_u64 userspace_addr;
	__aligned_u64 dirty_bitmap;
	__aligned_u64 dirty_bitmap_size;
};

/**
 * struct memslot_stage - ioctl(MEMSLOT_IOC_STAGE)
 * @size: sizeof(struct memslot_stage)
 * @flags: must be 0
 * @entries: address of @count entries, each @entry_size bytes
 * @count: number of entries
 * @entry_size: sizeof(struct memslot_entry), at most the page size
 * @failed_index: out: position in @entries of the offending entry, or
 *	MEMSLOT_NO_ENTRY
 * @reason: out: enum memslot_reason
 *
 * Appends entries to the batch: all of them, or none.  Each is judged by itself
 * here, and together with the others and the VM's layout by MEMSLOT_IOC_COMMIT.
 *
 * Errors: ENOTCONN (not bound), EIO (VM of another process, or dead), EFAULT,
 * E2BIG (too many, or entries with unknown content), EINVAL, EOPNOTSUPP (an
 * entry; see enum memslot_reason), ENOMEM.
 */
struct memslot_stage {
	__u32 size;
	__u32 flags;
	__aligned_u64 entries;
	__u32 count;
	__u32 entry_size;
	__u32 failed_index;
	__u32 reason;
};
#define MEMSLOT_IOC_STAGE _IO(MEMSLOT_IOC_TYPE, 2)

/* Bits of memslot_commit.flags */
#define MEMSLOT_COMMIT_TEST_ONLY	(1U << 0) /* check and report, apply nothing */
#define MEMSLOT_COMMIT_PARK		(1U << 1) /* park, even where a fence would do */
#define MEMSLOT_COMMIT_REPLACE_ALL	(1U << 2) /* slots that no entry names go */
#define MEMSLOT_COMMIT_IF_GENERATION	(1U << 3) /* only if the layout is still that one */

/**
 * struct memslot_commit - ioctl(MEMSLOT_IOC_COMMIT)
 * @size: sizeof(struct memslot_commit)
 * @flags: bits MEMSLOT_COMMIT_*
 * @entries: address of @count entries that follow the staged ones
 * @count: number of inline entries, may be 0
 * @entry_size: sizeof(struct memslot_entry), at most the page size; not looked
 *	at when @count is 0
 * @failed_index: out: the offending entry, staged ones counted first, or
 *	MEMSLOT_NO_ENTRY
 * @reason: out: enum memslot_reason
 * @strategy: out: enum memslot_strategy; with TEST_ONLY what would be used
 * @park_cause: out: enum memslot_park_cause
 * @created: out: slots that did not exist
 * @deleted: out: slots that are gone
 * @replaced: out: slots with another size, host address or READONLY, or that
 *	are moved and have dirty logging switched at once
 * @moved: out: slots with only another guest address
 * @reflagged: out: slots with only dirty logging switched
 * @grace_periods: out: how often the commit waited until nobody had a slot of the
 *	layout before: 0 if nothing changes, 2 if there are @tombstones, else 1; with
 *	TEST_ONLY how many it would be
 * @pages_kept: out: pages whose gfn keeps its host address, in slots that change
 * @pages_remapped: out: pages whose gfn got another host address
 * @pages_removed: out: pages whose gfn has no slot any more
 * @pages_added: out: pages whose gfn had no slot before
 * @ns_fenced: out: for how many nanoseconds page faults in the range that the batch
 *	changes could not complete
 * @generation: out: KVM's generation per address space, after the commit (or
 *	as it is, on failure and with TEST_ONLY); 0 where the caller may not
 *	change the VM, or @flags are unknown
 * @if_generation: with IF_GENERATION: the generation that memslot_query told,
 *	per address space; those of address spaces that the commit does not name
 *	are not looked at.  0 without that flag
 * @replace_spaces: with REPLACE_ALL: bit (1 << address space) for each one
 *	whose user slots shall be those of the batch and no others.  0 without
 *	that flag
 * @reserved: must be 0
 * @tombstones: out: ranges of guest memory without a slot in the new layout that
 *	vCPUs, while they ran on, found marked as KVM marks a slot that it deletes
 *	(KVM_MEMSLOT_INVALID), until the first of two grace periods was over; 0
 *	for a commit that takes no memory away or that parks, and where no guest
 *	can be a hypervisor (nested=0)
 * @late_root: out: 1 if the VM's first nested guest got the root of its page tables
 *	before the first of two grace periods was over; if that root was in memory
 *	that was going, the commit has dropped it
 *
 * Applies staged and inline entries as one change: every lookup of guest
 * memory finds the old layout or the new one.  On success the batch is empty
 * afterwards; on failure nothing has changed, and the staged entries are still there.
 *
 * A reply that can no longer be written is not an error: the commit happened,
 * and 0 is returned.
 *
 * IF_GENERATION makes a commit depend on what MEMSLOT_IOC_QUERY told: it fails
 * with ESTALE if an address space that an entry or @replace_spaces names has
 * changed since, be it by another thread's commit or by KVM's own ioctl.  Any
 * commit gives address space 0 a new generation.
 *
 * With PARK the commit gives up with EBUSY two seconds after the ioctl began, if
 * until then it did not get all locks, all vCPUs out of KVM_RUN, and to a moment
 * without a reader of the old layout.  Where an entry has a @dirty_bitmap, they
 * begin when earlier calls on the same file have ended.  A commit that finds out by
 * itself that it has to park has waited for the lock of the VM's slots as long as it
 * took, as KVM's own ioctl does, and has two seconds from then on.
 *
 * Errors: those of MEMSLOT_IOC_STAGE, and ENOENT, EEXIST (see enum
 * memslot_reason), EBUSY (could not park in time), ESTALE, EOPNOTSUPP (the VM is
 * of a kind that this module does not change).
 */
struct memslot_commit {
	__u32 size;
	__u32 flags;
	__aligned_u64 entries;
	__u32 count;
	__u32 entry_size;
	__u32 failed_index;
	__u32 reason;
	__u32 strategy;
	__u32 park_cause;
	__u32 created;
	__u32 deleted;
	__u32 replaced;
	__u32 moved;
	__u32 reflagged;
	__u32 grace_periods;
	__aligned_u64 pages_kept;
	__aligned_u64 pages_remapped;
	__aligned_u64 pages_removed;
	__aligned_u64 pages_added;
	__aligned_u64 ns_fenced;
	__aligned_u64 generation[MEMSLOT_MAX_ADDRESS_SPACES];
	__aligned_u64 if_generation[MEMSLOT_MAX_ADDRESS_SPACES];
	__u32 replace_spaces;
	__u32 reserved;
	__u32 tombstones;
	__u32 late_root;
};
#define MEMSLOT_IOC_COMMIT _IO(MEMSLOT_IOC_TYPE, 3)

/**
 * struct memslot_reset - ioctl(MEMSLOT_IOC_RESET)
 * @size: sizeof(struct memslot_reset)
 * @flags: must be 0
 *
 * Drops the staged entries.
 *
 * Errors: ENOTCONN (not bound), EIO (VM of another process, or dead).
 */
struct memslot_reset {
	__u32 size;
	__u32 flags;
};
#define MEMSLOT_IOC_RESET _IO(MEMSLOT_IOC_TYPE, 4)

/**
 * struct memslot_query - ioctl(MEMSLOT_IOC_QUERY)
 * @size: sizeof(struct memslot_query)
 * @flags: must be 0
 * @entries: address of an array for the slots, sorted by guest address
 * @count: in: how many elements the array has; out, on success and with
 *	ENOSPC: how many slots there are
 * @entry_size: in: sizeof(struct memslot_entry), at most the page size; what
 *	the module does not know of an element is zeroed; not looked at when
 *	@count is 0
 * @address_space: which
 * @reason: out: enum memslot_reason
 * @generation: out: KVM's generation of the address space, for IF_GENERATION
 *
 * Tells the user slots of an address space as they are at one moment.  The
 * elements can be committed as they are, but for those with
 * MEMSLOT_ENTRY_GUEST_MEMFD.  userspace_addr is 0 unless the VM is the caller's
 * own.
 *
 * Waits for a commit of another thread, or a change by KVM itself, only from
 * publishing on: for its grace period.  Where KVM deletes or moves a slot it
 * publishes twice, and waits for readers each time; what it publishes first, with
 * the slot gone for a while, is never told.
 *
 * Errors: ENOTCONN (not bound), EINVAL (no such address space, entry_size),
 * E2BIG (entry_size), ENOSPC (more slots than @count: nothing was written to
 * @entries), EFAULT, ENOMEM.
 */
struct memslot_query {
	__u32 size;
	__u32 flags;
	__aligned_u64 entries;
	__u32 count;
	__u32 entry_size;
	__u32 address_space;
	__u32 reason;
	__aligned_u64 generation;
};
#define MEMSLOT_IOC_QUERY _IO(MEMSLOT_IOC_TYPE, 5)

#endif /* _UAPI_LINUX_MEMSLOT_H */
