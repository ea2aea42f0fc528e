/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A gfn without a slot is MMIO, and KVM remembers it: in an MMIO SPTE with some
 * bits of the generation of the address space, and in the vCPU's own cache with
 * all bits of that of address space 0 (since Linux 6.12).  gfn 1 gets a slot in
 * the first commit and keeps it, so whoever still takes it for MMIO afterwards,
 * does so for ever.  The vCPU is in address space 1.
 */
#define GFNS 2
#define LAST_LAYOUT 2
#define CREATES
#include "kvm.pml"

/* MMIO_SPTE_GEN_MASK: 19 bits there, one here, so that it wraps in the second commit. */
#define MMIO_GENERATION(generation) ((generation) & 1)

bool is_mmio_spte;
byte mmio_spte_generation;
byte generation_of_space_0;
bool mmio_cached;
byte mmio_cache_generation;

inline gate()
{
	mutex_lock(slots_arch_lock)
}

/* An MMIO SPTE is not present, no zap of a range sees it. */
inline zap() { skip }
inline zap_late_root() { skip }
inline carry() { skip }

/* kvm_mmu_invalidate_mmio_sptes() */
inline memslots_updated(number)
{
#ifdef NOT_TOLD_OF_NEW_GENERATION
	skip
#else
	atomic {
		if
		:: MMIO_GENERATION(number) == 0 -> is_mmio_spte = false
		:: else
		fi
	}
#endif
}

#ifdef ONLY_TOUCHED_SPACES
inline publish_space_0(early, flags) { skip }
inline end_space_0(late) { skip }
#else
inline publish_space_0(early, flags)
{
	generation_of_space_0 = NUMBER(generation_of_space_0) + early | flags
}

inline end_space_0(late)
{
	generation_of_space_0 = NUMBER(generation_of_space_0) + late
}
#endif

#include "commit.pml"

proctype commits()
{
	byte set;

	do
	:: !committed -> commit_apply(set)
	:: else -> break
	od
}

#define is_hole(gfn) (tree(memslots, gfn) != NONE)

proctype vcpu(byte me)
{
	byte set, slot;

	do
	:: srcu_read_lock(me);
		/* mmio_info_in_cache() */
		atomic {
			if
			:: mmio_cached && mmio_cache_generation == generation_of_space_0 ->
				must(no_permanent_hole, !is_hole(1));
				goto out
			:: else
			fi
		};
		/* check_mmio_spte(), and vcpu_cache_mmio_info() some time after it */
		atomic {
			if
			:: is_mmio_spte && !(generation[memslots] & UPDATE_IN_PROGRESS) &&
			   mmio_spte_generation == MMIO_GENERATION(generation[memslots]) ->
				must(no_permanent_hole, !is_hole(1));
				goto cache
			:: else
			fi
		};
		gfn_to_memslot(set, 1, slot);
		if
		:: slot != NONE -> goto out		/* memory.pml */
		:: else
		fi;
		/* make_mmio_spte() takes the generation of now, not of the lookup */
		atomic {
			mmio_spte_generation = MMIO_GENERATION(generation[memslots]);
			is_mmio_spte = true
		};
cache:		atomic {
			if
			:: !(generation_of_space_0 & UPDATE_IN_PROGRESS) ->
				mmio_cache_generation = generation_of_space_0;
				mmio_cached = true
			:: else
			fi
		};
out:		srcu_read_unlock(me)
	od
}

init {
	atomic {
		tree(0, 0) = SLOT_IN(0, 0);
		tree(1, 0) = SLOT_IN(0, 0);
		run vcpu(0);
		run commits()
	}
}
