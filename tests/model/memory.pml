/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Who reaches which memory.  One gfn that gets other memory, loses it (UNCOVERS)
 * or gets some (CREATES), while vCPUs touch it, and the host takes the old memory
 * (of CREATES: the new) back at any time: in the middle of the commit, or after it, as munmap() does.
 */
#include "kvm.pml"

#define VCPUS 2
#define NOTIFIER 2		/* its number as a reader */

/* An entry of the page table: nothing, an MMIO SPTE, or which memory is mapped. */
#define OLD MEMORY_OF(0)
#define NEW MEMORY_OF(1)
#define MMIO 3
#define is_present(entry) ((entry) == OLD || (entry) == NEW)

byte spte;
byte tlb[VCPUS];

bool reached_new;		/* by a vCPU, through its page tables */
bool page_freed;		/* the host has taken the page back */
bool notified;

inline kvm_flush_remote_tlbs()
{
	tlb[0] = NONE;
	tlb[1] = NONE
}

/* Under mmu_lock up to the flush; MMIO SPTEs are not present, and stay. */
inline zap()
{
#ifdef UNLOCKED_BEFORE_FLUSH
	atomic {
		if
		:: is_present(spte) -> spte = NONE
		:: else
		fi
	};
	atomic { kvm_flush_remote_tlbs() }
#else
	atomic {
		if
		:: is_present(spte) -> spte = NONE
		:: else
		fi;
		kvm_flush_remote_tlbs()
	}
#endif
}

inline gate()
{
	mutex_lock(slots_arch_lock)
}

/* nested.pml has roots, dirty.pml has bits. */
inline zap_late_root() { skip }
inline carry() { skip }
inline memslots_updated(number) { skip }
inline publish_space_0(early, flags) { skip }
inline end_space_0(late) { skip }

#include "commit.pml"

proctype commit()
{
	byte set;

	commit_apply(set)
}

/* What the host takes back. */
#ifdef CREATES
#define TAKEN NEW
#else
#define TAKEN OLD
#endif

/* The guest's loads and stores, and kvm_tdp_page_fault() */
inline access(memory)
{
	must(freed_pages_unmapped, memory != TAKEN || !page_freed);
	must(nothing_after_return, memory != OLD || !committed);
	must(old_before_new, memory != OLD || !reached_new);
	reached_new = reached_new || memory == NEW
}

proctype vcpu(byte me)
{
	byte set, slot, mmu_seq, pfn;
	byte cached, cached_generation;

	do
	:: atomic { tlb[me] != NONE -> access(tlb[me]) }
	:: atomic { tlb[me] == NONE && is_present(spte) -> tlb[me] = spte }
	:: atomic { tlb[me] == NONE && !is_present(spte) -> srcu_read_lock(me) };
fault:		kvm_vcpu_gfn_to_memslot(set, 0, slot, cached, cached_generation);
		mmu_seq = mmu_invalidate_seq;		/* kvm_faultin_pfn() */
		if
		:: slot == TOMBSTONE -> goto retry
		:: slot == NONE -> pfn = MMIO
		:: else ->
			pfn = MEMORY(slot);
			if
			:: pfn == TAKEN && page_freed -> goto retry	/* no page: EFAULT */
			:: else
			fi
		fi;
		atomic {				/* mmu_lock */
			if
			/* is_page_fault_stale(): who found no slot does not ask */
			:: slot != NONE && invalidate_retry(mmu_seq, pfn)
			:: else ->
				must(spte_keeps_pfn, !is_present(spte) || spte == pfn);
				spte = pfn
			fi
		}
retry:		atomic {
			srcu_read_unlock(me);
			set = 0;
			slot = 0;
			mmu_seq = 0;
			pfn = 0
		}
	od
}

/*
 * kvm_mmu_notifier_invalidate_range_start(), the host takes the page, and _end().
 * Both take part only if they find a slot by the host's address.
 */
#define in_hva_tree(set) (tree(set, 0) != NONE && tree(set, 0) != TOMBSTONE && MEMORY(tree(set, 0)) == TAKEN)

proctype mmu_notifier()
{
	byte set;

	mn_active_invalidate_count++;			/* mn_invalidate_lock */
	srcu_read_lock(NOTIFIER);
	set = memslots;
	atomic {
		if
		:: in_hva_tree(set) ->			/* mmu_lock */
			invalidate_begin(BIT(TAKEN));
			if
			:: spte == TAKEN ->
				spte = NONE;
				kvm_flush_remote_tlbs()
			:: else
			fi
		:: else
		fi
	};
	srcu_read_unlock(NOTIFIER);
	page_freed = true;
	srcu_read_lock(NOTIFIER);
	set = memslots;
	atomic {
		if
		:: in_hva_tree(set) -> invalidate_end()
		:: else
		fi
	};
	srcu_read_unlock(NOTIFIER);
	mn_active_invalidate_count--;
	notified = true
}

init {
	atomic {
		tree(0, 0) = SLOT_IN(0, 0);
		tree(1, 0) = SLOT_IN(0, 0);
		run vcpu(0);
		run vcpu(1);
		run mmu_notifier();
		run commit()
	};
	atomic {
		committed && notified ->
		must(invalidations_balance, mmu_invalidate_in_progress == 0)
	}
}
