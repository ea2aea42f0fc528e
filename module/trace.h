/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM memslot

#if !defined(MEMSLOT_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define MEMSLOT_TRACE_H

#include <linux/kvm_host.h>
#include <linux/tracepoint.h>
#include <linux/memslot.h>

#include "step.h"

TRACE_DEFINE_ENUM(STEP_PARK);
TRACE_DEFINE_ENUM(STEP_PLAN);
TRACE_DEFINE_ENUM(STEP_PREPARE);
TRACE_DEFINE_ENUM(STEP_BUILD);
TRACE_DEFINE_ENUM(STEP_FENCE);
TRACE_DEFINE_ENUM(STEP_ZAP);
TRACE_DEFINE_ENUM(STEP_PUBLISH);
TRACE_DEFINE_ENUM(STEP_WAIT);
TRACE_DEFINE_ENUM(STEP_UPDATED);
TRACE_DEFINE_ENUM(STEP_UNFENCE);
TRACE_DEFINE_ENUM(STEP_MIRROR);
TRACE_DEFINE_ENUM(STEP_FINISH);

#define show_step(step)				\
	__print_symbolic(step,			\
		{ STEP_PARK, "park" }, \
		{ STEP_PLAN, "plan" }, \
		{ STEP_PREPARE, "prepare" }, \
		{ STEP_BUILD, "build" }, \
		{ STEP_FENCE, "fence" }, \
		{ STEP_ZAP, "zap" }, \
		{ STEP_PUBLISH, "publish" }, \
		{ STEP_WAIT, "wait" }, \
		{ STEP_UPDATED, "updated" }, \
		{ STEP_UNFENCE, "unfence" }, \
		{ STEP_MIRROR, "mirror" }, \
		{ STEP_FINISH, "finish" })

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

	    TP_printk("vm %d entries %u flags 0x%x", __entry->vm, __entry->entries,
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

	    TP_printk("vm %d %s done", __entry->vm,
		      show_step(__entry->step))
);

TRACE_EVENT(memslot_commit_end,
	    TP_PROTO(struct kvm *kvm, int err, const struct memslot_commit *reply),
	    TP_ARGS(kvm, err, reply),

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
	    ),

	    TP_fast_assign(
		__entry->vm = kvm->userspace_pid;
		__entry->err = err;
		__entry->failed_index = reply->failed_index;
		__entry->reason = reply->reason;
		__entry->strategy = reply->strategy;
		__entry->park_cause = reply->park_cause;
		__entry->created = reply->created;
		__entry->deleted = reply->deleted;
		__entry->replaced = reply->replaced;
		__entry->moved = reply->moved;
		__entry->reflagged = reply->reflagged;
		__entry->grace_periods = reply->grace_periods;
		__entry->pages_kept = reply->pages_kept;
		__entry->pages_remapped = reply->pages_remapped;
		__entry->pages_removed = reply->pages_removed;
		__entry->pages_added = reply->pages_added;
		__entry->ns_fenced = reply->ns_fenced;
	    ),

	    TP_printk("vm %d err %d entry %d reason %u strategy %u cause %u created %u deleted %u replaced %u moved %u reflagged %u grace periods %u kept %llu remapped %llu removed %llu added %llu fenced %llu ns",
		      __entry->vm, __entry->err, (int)__entry->failed_index, __entry->reason,
		      __entry->strategy, __entry->park_cause, __entry->created,
		      __entry->deleted, __entry->replaced, __entry->moved,
		      __entry->reflagged, __entry->grace_periods,
		      __entry->pages_kept, __entry->pages_remapped, __entry->pages_removed,
		      __entry->pages_added, __entry->ns_fenced)
);

#endif /* MEMSLOT_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
