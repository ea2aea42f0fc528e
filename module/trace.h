/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM memslot

#if !defined(MEMSLOT_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define MEMSLOT_TRACE_H

#include <linux/kvm_host.h>
#include <linux/tracepoint.h>
#include <linux/memslot.h>

#include "commit.h"
#include "step.h"

/*
 * X(constant, name in traces) for all constants of the interface's enums, and LAST()
 * for the last one.  Programs that read the events' format in tracefs know a constant
 * by its number only, which TRACE_DEFINE_ENUM() puts there.
 */
#define MEMSLOT_REASONS(X, LAST)				\
	X(MEMSLOT_REASON_NONE, NONE)				\
	X(MEMSLOT_REASON_ARGUMENT, ARGUMENT)			\
	X(MEMSLOT_REASON_UNREADABLE, UNREADABLE)		\
	X(MEMSLOT_REASON_ENTRY_TOO_NEW, ENTRY_TOO_NEW)		\
	X(MEMSLOT_REASON_TOO_MANY, TOO_MANY)			\
	X(MEMSLOT_REASON_SLOT_ID, SLOT_ID)			\
	X(MEMSLOT_REASON_ADDRESS_SPACE, ADDRESS_SPACE)		\
	X(MEMSLOT_REASON_FLAGS, FLAGS)				\
	X(MEMSLOT_REASON_GPA_ALIGN, GPA_ALIGN)			\
	X(MEMSLOT_REASON_SIZE_ALIGN, SIZE_ALIGN)		\
	X(MEMSLOT_REASON_HVA_ALIGN, HVA_ALIGN)			\
	X(MEMSLOT_REASON_HVA_RANGE, HVA_RANGE)			\
	X(MEMSLOT_REASON_GPA_RANGE, GPA_RANGE)			\
	X(MEMSLOT_REASON_TOO_LARGE, TOO_LARGE)			\
	X(MEMSLOT_REASON_DUPLICATE, DUPLICATE)			\
	X(MEMSLOT_REASON_NO_SLOT, NO_SLOT)			\
	X(MEMSLOT_REASON_OVERLAP_ENTRY, OVERLAP_ENTRY)		\
	X(MEMSLOT_REASON_OVERLAP_SLOT, OVERLAP_SLOT)		\
	X(MEMSLOT_REASON_GUEST_MEMFD, GUEST_MEMFD)		\
	X(MEMSLOT_REASON_NOT_BOUND, NOT_BOUND)			\
	X(MEMSLOT_REASON_BOUND, BOUND)				\
	X(MEMSLOT_REASON_NOT_KVM, NOT_KVM)			\
	X(MEMSLOT_REASON_OWNER, OWNER)				\
	X(MEMSLOT_REASON_DEAD, DEAD)				\
	X(MEMSLOT_REASON_VM_TYPE, VM_TYPE)			\
	X(MEMSLOT_REASON_PAGE_TRACK, PAGE_TRACK)		\
	X(MEMSLOT_REASON_MEMORY, MEMORY)			\
	X(MEMSLOT_REASON_PARK_TIMEOUT, PARK_TIMEOUT)		\
	X(MEMSLOT_REASON_LOCKED, LOCKED)			\
	X(MEMSLOT_REASON_GENERATION, GENERATION)		\
	X(MEMSLOT_REASON_BITMAP_ALIGN, BITMAP_ALIGN)		\
	X(MEMSLOT_REASON_BITMAP_SIZE, BITMAP_SIZE)		\
	X(MEMSLOT_REASON_BITMAP_UNWRITABLE, BITMAP_UNWRITABLE)	\
	X(MEMSLOT_REASON_BITMAP_LOCKED, BITMAP_LOCKED)		\
	X(MEMSLOT_REASON_NO_DIRTY_LOG, NO_DIRTY_LOG)		\
	X(MEMSLOT_REASON_DIRTY_RING, DIRTY_RING)		\
	X(MEMSLOT_REASON_QUERY_ONLY, QUERY_ONLY)		\
	LAST(MEMSLOT_REASON_NO_ROOM, NO_ROOM)

#define MEMSLOT_STRATEGIES(X, LAST)				\
	X(MEMSLOT_STRATEGY_NONE, NONE)				\
	X(MEMSLOT_STRATEGY_FENCE, FENCE)			\
	LAST(MEMSLOT_STRATEGY_PARK, PARK)

#define MEMSLOT_PARK_CAUSES(X, LAST)				\
	X(MEMSLOT_PARK_NOT, NOT)				\
	X(MEMSLOT_PARK_REQUESTED, REQUESTED)			\
	X(MEMSLOT_PARK_SHADOW_PAGING, SHADOW_PAGING)		\
	X(MEMSLOT_PARK_NESTED, NESTED)				\
	X(MEMSLOT_PARK_UNCOVERS, UNCOVERS)			\
	LAST(MEMSLOT_PARK_DIRTY_LOG, DIRTY_LOG)

#define memslot_define_enum(constant, name) TRACE_DEFINE_ENUM(constant);
MEMSLOT_STEPS(memslot_define_enum, memslot_define_enum)
MEMSLOT_REASONS(memslot_define_enum, memslot_define_enum)
MEMSLOT_STRATEGIES(memslot_define_enum, memslot_define_enum)
MEMSLOT_PARK_CAUSES(memslot_define_enum, memslot_define_enum)
#undef memslot_define_enum

#define memslot_last_symbol(constant, name) { constant, #name }
#define memslot_symbol(constant, name) memslot_last_symbol(constant, name),
#define memslot_show(value, constants) \
	__print_symbolic(value, constants(memslot_symbol, memslot_last_symbol))

TRACE_EVENT(memslot_commit_start,
	    TP_PROTO(struct kvm *kvm, u32 entries, u32 flags),
	    TP_ARGS(kvm, entries, flags),

	    TP_STRUCT__entry(
		__field(pid_t, vm)
		__field(u32, entries)
		__field(u32, flags)
	    ),

	    TP_fast_assign(
		__entry->vm = kvm->userspace_pid;
		__entry->entries = entries;
		__entry->flags = flags;
	    ),

	    TP_printk("vm=%d entries=%u flags=0x%x", __entry->vm, __entry->entries,
		      __entry->flags)
);

TRACE_EVENT(memslot_commit_step,
	    TP_PROTO(struct kvm *kvm, unsigned int step),
	    TP_ARGS(kvm, step),

	    TP_STRUCT__entry(
		__field(pid_t, vm)
		__field(unsigned int, step)
	    ),

	    TP_fast_assign(
		__entry->vm = kvm->userspace_pid;
		__entry->step = step;
	    ),

	    TP_printk("vm=%d step=%s", __entry->vm,
		      memslot_show(__entry->step, MEMSLOT_STEPS))
);

TRACE_EVENT(memslot_commit_end,
	    TP_PROTO(struct kvm *kvm, int err, const struct commit_result *result),
	    TP_ARGS(kvm, err, result),

	    TP_STRUCT__entry(
		__field(pid_t, vm)
		__field(int, err)
		__field(u32, failed_index)
		__field(u32, reason)
		__field(u32, strategy)
		__field(u32, park_cause)
		__field(u32, created)
		__field(u32, deleted)
		__field(u32, replaced)
		__field(u32, moved)
		__field(u32, reflagged)
		__field(u32, grace_periods)
		__field(u64, pages_kept)
		__field(u64, pages_remapped)
		__field(u64, pages_removed)
		__field(u64, pages_added)
		__field(u64, ns_fenced)
		__field(u32, tombstones)
		__field(u32, late_root)
	    ),

	    TP_fast_assign(
		__entry->vm = kvm->userspace_pid;
		__entry->err = err;
		__entry->failed_index = result->error.index;
		__entry->reason = result->error.reason;
		__entry->strategy = result->strategy;
		__entry->park_cause = result->park_cause;
		__entry->created = result->totals.count[PLAN_CREATE];
		__entry->deleted = result->totals.count[PLAN_DELETE];
		__entry->replaced = result->totals.count[PLAN_REPLACE];
		__entry->moved = result->totals.count[PLAN_MOVE];
		__entry->reflagged = result->totals.count[PLAN_REFLAG];
		__entry->grace_periods = result->grace_periods;
		__entry->pages_kept = result->totals.pages_kept;
		__entry->pages_remapped = result->totals.pages_remapped;
		__entry->pages_removed = result->totals.pages_removed;
		__entry->pages_added = result->totals.pages_added;
		__entry->ns_fenced = result->ns_fenced;
		__entry->tombstones = result->nr_tombstones;
		__entry->late_root = result->late_root;
	    ),

	    TP_printk("vm=%d err=%d entry=%d reason=%s strategy=%s cause=%s created=%u deleted=%u replaced=%u moved=%u reflagged=%u grace_periods=%u kept=%llu remapped=%llu removed=%llu added=%llu ns_fenced=%llu tombstones=%u late_root=%u",
		      __entry->vm, __entry->err, (int)__entry->failed_index,
		      memslot_show(__entry->reason, MEMSLOT_REASONS),
		      memslot_show(__entry->strategy, MEMSLOT_STRATEGIES),
		      memslot_show(__entry->park_cause, MEMSLOT_PARK_CAUSES),
		      __entry->created, __entry->deleted, __entry->replaced, __entry->moved,
		      __entry->reflagged, __entry->grace_periods,
		      __entry->pages_kept, __entry->pages_remapped, __entry->pages_removed,
		      __entry->pages_added, __entry->ns_fenced, __entry->tombstones,
		      __entry->late_root)
);

#endif /* MEMSLOT_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
