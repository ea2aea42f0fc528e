// SPDX-License-Identifier: GPL-2.0
/*
 * Page-modification logs (PML) of vCPUs that are not in the guest.
 *
 * Intel's processors log the pages that a guest dirties in a buffer of the vCPU, and
 * KVM marks them in its dirty logs when the vCPU leaves the guest: not in all kernels,
 * see COMPAT_PML_IS_LATE.  There a vCPU that KVM_RUN has returned from may have such a
 * buffer for as long as it is not run again.  By then KVM looks the pages up by gfn,
 * in the layout of that day.
 */
#include "pml.h"

#include <asm/asm.h>
#include <asm/vmx.h>

#include "compat/compat.h"

/* The buffer is a page of guest physical addresses, and filled from its end. */
#define PML_ENTRIES (PAGE_SIZE / sizeof(u64))

/*
 * A field of the VMCS that is loaded; @otherwise where the instruction faults: somebody
 * has turned VMX off below KVM, which is what a forced reboot does.  Then nobody is
 * going to read a dirty log.
 */
static u64 vmcs_get(unsigned long field, u64 otherwise)
{
	u64 value = otherwise;

	asm volatile("1: vmread %[field], %[value]\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : [value] "+r" (value)
		     : [field] "r" (field)
		     : "cc");
	return value;
}

static void vmcs_set(unsigned long field, u64 value)
{
	asm volatile("1: vmwrite %[value], %[field]\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     :
		     : [value] "r" (value), [field] "r" (field)
		     : "cc", "memory");
}

/* With the vCPU loaded, so that the VMCS is its own. */
static void flush_loaded(struct kvm_vcpu *vcpu)
{
	u64 buffer = vmcs_get(PML_ADDRESS, 0);
	/* Where the processor writes next; one below zero once the buffer is full. */
	u16 index = vmcs_get(GUEST_PML_INDEX, PML_ENTRIES - 1);
	const u64 *gpas = phys_to_virt(buffer);
	u16 i;

	if (!buffer)
		return;
	for (i = index + 1; i < PML_ENTRIES; i++)
		internal(kvm_vcpu_mark_page_dirty)(vcpu, gpa_to_gfn(gpas[i]));
	vmcs_set(GUEST_PML_INDEX, PML_ENTRIES - 1);
}

/**
 * pml_flush - mark what processors have logged in the dirty logs
 * @kvm: the VM, all of whose vCPUs are parked
 *
 * As KVM does it: by the layout that is published, into bitmaps or the vCPU's ring.
 * Without this a page could be missing in the log of a slot that goes or moves.
 */
void pml_flush(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	lockdep_assert_held(&kvm->slots_lock);

	if (!COMPAT_PML_IS_LATE || !compat_has_pml(kvm))
		return;
	kvm_for_each_vcpu(i, vcpu, kvm) {
		/*
		 * The VMCS that is loaded for a nested guest logs nothing, and KVM has
		 * flushed that of the vCPU's own guest: what entered the nested one was
		 * an exit that is handled in full.
		 */
		if (vcpu->arch.hflags & HF_GUEST_MASK)
			continue;
		internal(vcpu_load)(vcpu);
		flush_loaded(vcpu);
		internal(vcpu_put)(vcpu);
		cond_resched();
	}
}
