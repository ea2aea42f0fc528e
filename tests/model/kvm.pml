/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The pieces of KVM that a commit and its readers share.  A statement is one
 * step, whatever others do between two of them; atomic { } is what happens under
 * a spinning lock (mmu_lock, mn_invalidate_lock), which nobody can look behind.
 * Promela's memory is sequentially consistent: barriers are not modelled.
 */

/* ---- What must hold: the names in README.md's table ---- */

mtype = {
	whole_layouts,		/* a lookup finds the old layout or the new one */
	old_before_new,		/* new memory reached: the old one no more */
	spte_keeps_pfn,		/* else tdp_mmu.c says BUG() */
	freed_pages_unmapped,	/* no vCPU reaches a page that the host has taken back */
	nothing_after_return,	/* the caller may unmap what went */
	nothing_freed_is_used,	/* slots */
	no_null_slot,		/* where KVM does not check for one; nor a slot without arrays */
	accounts_balance,	/* a shadow page leaves the slot that it was counted in */
	invalidations_balance,	/* MMU notifiers: as many ends as starts */
	no_dirty_bit_lost,
	no_permanent_hole,	/* an MMIO SPTE does not outlive its layout */
	nothing_leaks
};

/* A mutation must break the property that the table names; only that one is looked at. */
#ifdef ONLY
#define must(property, condition) assert((property != ONLY) || (condition))
#else
#define must(property, condition) assert((property == 0) || (condition))
#endif

/* ---- Mutexes ---- */

bool slots_lock, slots_arch_lock;

inline mutex_lock(lock)
{
	atomic { !lock -> lock = true }
}

inline mutex_unlock(lock)
{
	lock = false
}

/* ---- SRCU ---- */

/* Bits of readers: who is in a section, and whose section the grace period waits for. */
byte srcu_readers, srcu_awaited;

#define BIT(n) (1 << (n))

inline srcu_read_lock(me)
{
	srcu_readers = srcu_readers | BIT(me)
}

inline srcu_read_unlock(me)
{
	d_step {
		srcu_readers = srcu_readers & ~BIT(me);
		srcu_awaited = srcu_awaited & ~BIT(me)
	}
}

/* Sections that begin later are not waited for.  slots_lock: one waiter at a time. */
inline synchronize_srcu()
{
	srcu_awaited = srcu_readers;
	srcu_awaited == 0
}

/* ---- struct kvm_memory_slot and struct kvm_memslots ---- */

#ifndef GFNS
#define GFNS 1
#endif

#define NONE 0
/* Layout 0 is what there is first; each commit goes from one layout to the next. */
#define SLOT(layout, gfn) (1 + (layout) * GFNS + (gfn))
#define LAYOUT_OF(slot) (((slot) - 1) / GFNS)
/* KVM_MEMSLOT_INVALID, in the place of gfn 0's slot; six other slots fit before it */
#define TOMBSTONE 7

byte freed;			/* bits of slots: kfree() was called */

inline use(slot)
{
	must(nothing_freed_is_used, !(freed & BIT(slot)))
}

/* is_gfn_in_memslot(); a tombstone lies over gfn 0 only */
#define covers(slot, gfn) ((slot) == TOMBSTONE -> (gfn) == 0 : ((slot) - 1) % GFNS == (gfn))

/* kvm->memslots: which of the two sets is active; each has a tree and a cache. */
bit memslots;
byte gfn_tree[2 * GFNS];	/* [set * GFNS + gfn]: a slot or NONE */
byte last_used_slot[2];
byte generation[2];

#define tree(set, gfn) gfn_tree[(set) * GFNS + (gfn)]

/* The flags of a generation; below them it counts the changes. */
#define UPDATE_IN_PROGRESS 128
#define FIRST_OF_TWO 64
#define NUMBER(generation) ((generation) & (FIRST_OF_TWO - 1))

/*
 * ____gfn_to_memslot(): the set's own cache first.  All readers share it, and
 * they trust it: nobody looks whether the slot is still in the set.
 */
inline gfn_to_memslot(set, gfn, slot)
{
	set = memslots;
	atomic {
		if
		:: last_used_slot[set] != NONE && covers(last_used_slot[set], gfn) ->
			slot = last_used_slot[set]
		:: else ->
			slot = tree(set, gfn)
		fi;
		if
		:: slot != NONE -> use(slot)
		:: else
		fi
	}
	if
	:: slot != NONE -> last_used_slot[set] = slot
	:: else
	fi
}

/* kvm_vcpu_gfn_to_memslot(): the vCPU's cache, by generation, outlives the section. */
inline kvm_vcpu_gfn_to_memslot(set, gfn, slot, cached, cached_generation)
{
	set = memslots;
	atomic {
		if
		:: cached_generation != generation[set] ->
			cached = NONE;
			cached_generation = generation[set]
		:: else
		fi
	}
	atomic {
		if
		:: cached != NONE && covers(cached, gfn) ->
			slot = cached
		:: else ->
			slot = tree(set, gfn);
			if
			:: slot != NONE -> cached = slot
			:: else
			fi
		fi;
		if
		:: slot != NONE -> use(slot)
		:: else
		fi
	}
}

/* ---- mmu_lock: invalidations ---- */

byte mmu_invalidate_seq;
byte mmu_invalidate_in_progress;
byte invalidate_range;		/* bits of host memory, see MEMORY() */
byte mn_active_invalidate_count;

/* Host memory, by what a slot's userspace_addr points to: layout 0's, 1's, ... */
#define MEMORY_OF(layout) (1 + (layout))
#define MEMORY(slot) MEMORY_OF(LAYOUT_OF(slot))

/* In one hold of mmu_lock.  KVM knows one range: that of all invalidations together. */
inline invalidate_begin(memory)
{
	mmu_invalidate_in_progress++;
	invalidate_range = memory | (mmu_invalidate_in_progress > 1 -> invalidate_range : 0)
}

inline invalidate_end()
{
	mmu_invalidate_seq++;
	must(invalidations_balance, mmu_invalidate_in_progress > 0);
	mmu_invalidate_in_progress--
}

/* mmu_invalidate_retry_hva() */
#define invalidate_retry(seq, memory) \
	((mmu_invalidate_in_progress && (invalidate_range & BIT(memory))) || mmu_invalidate_seq != (seq))
