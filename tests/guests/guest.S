/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a vCPU does: round and round, it touches each page of its other memory, reads the version in
 * the data word of each location, then the ones that the code there returns, and judges them by what was seen before.  guest.hpp has the
 * other side of the structures, and says what the counters mean.  With a VMCB, or with
 * a VMCS to make, it makes every other round in a guest of its own.
 *
 * Entered in 64-bit mode with
 *	%rbx  struct vcpu_page, the top of its page is the stack
 *	%rbp  struct shared_page
 */

/* struct vcpu_page */
	.set loops, 0
	.set newest, 8
	.set versions, 16
	.set torn, 24
	.set torn_across, 32
	.set holes, 40
	.set emulated, 48
	.set emulated_reads, 56
	.set wrong, 64
	.set vmcb, 72
	.set nested_loops, 80
	.set nested_faults, 88
	.set nested_errors, 96
	.set vmx, 104
	.set watch, 112
	.set touches, 120
	.set longest, 128
	.set gaps, 136

/* struct vmx_page */
	.set vmxon_region, 0
	.set vmcs, 8
	.set vmx_end, 16
	.set vmx_fields, 24

/* struct vmcs_field */
	.set value, 8
	.set vmcs_field_size, 16

/* struct shared_page */
	.set shared_newest, 0
	.set mailbox, 8
	.set end, 16
	.set other, 24
	.set other_end, 32
	.set locations, 40

/* struct location */
	.set data, 0
	.set code, 8
	.set bias, 16
	.set location_size, 24

	.set hole, -1
	.set fixed, -1
	.set fixed_version, 1
	.set watch_first, 0x7fffffff
	.set watch_writes, 0x80000000
	/* From a location's code to the function that makes KVM read the data */
	.set to_mailbox, 16

	.set msr_hsave_pa, 0xc0010117
	.set vmcb_exit_code, 0x070
	.set vmcb_rip, 0x578
	.set vmcb_rsp, 0x5d8
	.set exit_vmmcall, 0x81
	.set exit_npf, 0x400

/* Fields of a VMCS and basic exit reasons: Intel's SDM, volume 3D, appendices B and C */
	.set vmcs_exit_reason, 0x4402
	.set vmcs_guest_rsp, 0x681c
	.set vmcs_guest_rip, 0x681e
	.set vmcs_host_rsp, 0x6c14
	.set vmcs_host_rip, 0x6c16
	.set exit_triple_fault, 2
	.set exit_vmcall, 18
	.set exit_ept_violation, 48

	/* What is ours of the stack, the guest's is below */
	.set vmx_stack_size, 512

	.section .rodata
	.globl guest_code, guest_code_end
	.globl location_code, location_code_end
	.code64

guest_code:
	cld
	lea locations(%rbp), %r14
	cmpq $0, watch(%rbx)
	jne watcher
	cmpq $0, vmcb(%rbx)
	jne hypervisor
	cmpq $0, vmx(%rbx)
	jne vmx_hypervisor
1:
	call pass
	jmp 1b

/* In %r12 the time of the touch before, in %r13 how many pages are left of this round. */
watcher:
	call time
	mov %rax, %r12
watch_all:
	mov watch(%rbx), %r13
	mov %r13d, %esi
	and $watch_first, %esi
	shl $12, %rsi
	mov %r13, %r14
	shr $32, %r13
1:
	mov (%rsi), %rax
	cmp $hole, %rax
	jne 2f
	incq holes(%rbx)
2:
	test $watch_writes, %r14d
	jz 3f
	mov %rsi, 8(%rsi)
3:
	call time
	mov %rax, %rcx
	sub %r12, %rcx
	/* Processors' clocks may differ a little, and a vCPU goes from one to the other */
	ja 4f
	mov $1, %ecx
4:
	mov %rax, %r12
	bsr %rcx, %rdx
	incq gaps(%rbx, %rdx, 8)
	cmp longest(%rbx), %rcx
	jbe 5f
	mov %rcx, longest(%rbx)
5:
	incq touches(%rbx)
	add $4096, %rsi
	dec %r13
	jnz 1b
	incq loops(%rbx)
	jmp watch_all

time:
	rdtsc
	shl $32, %rdx
	or %rdx, %rax
	ret

hypervisor:
	/* KVM wants one, and keeps the host's state elsewhere */
	mov $msr_hsave_pa, %ecx
	mov %ebx, %eax
	xor %edx, %edx
	wrmsr
1:
	call pass
2:
	/* Registers but for these two and %rax pass through */
	mov vmcb(%rbx), %rax
	lea nested_guest(%rip), %rcx
	mov %rcx, vmcb_rip(%rax)
	mov %rsp, vmcb_rsp(%rax)
3:
	vmrun %rax
	cmpq $exit_vmmcall, vmcb_exit_code(%rax)
	jne 4f
	incq nested_loops(%rbx)
	jmp 1b
4:
	cmpq $exit_npf, vmcb_exit_code(%rax)
	jne 5f
	incq nested_faults(%rbx)
	/* Goes on where it was: halfway through a pass it cannot begin another */
	jmp 3b
5:
	incq nested_errors(%rbx)
	jmp 2b

nested_guest:
	call pass
	vmmcall
	ud2

/* Whatever fails here makes VMLAUNCH fail, too, which is counted. */
vmx_hypervisor:
	mov vmx(%rbx), %rsi
	vmxon vmxon_region(%rsi)
	vmclear vmcs(%rsi)
	vmptrld vmcs(%rsi)
	lea vmx_fields(%rsi), %rdi
1:
	mov (%rdi), %rax
	vmwrite value(%rdi), %rax
	add $vmcs_field_size, %rdi
	cmp vmx_end(%rsi), %rdi
	jb 1b
	mov $vmcs_host_rip, %eax
	lea vmx_exit(%rip), %rcx
	vmwrite %rcx, %rax
	mov $vmcs_host_rsp, %eax
	vmwrite %rsp, %rax

vmx_pass:
	call pass
	mov $vmcs_guest_rip, %eax
	lea vmx_guest(%rip), %rcx
	vmwrite %rcx, %rax
	mov $vmcs_guest_rsp, %eax
	lea -vmx_stack_size(%rsp), %rcx
	vmwrite %rcx, %rax
	vmresume
	/* The first time it does nothing, as the VMCS was not launched */
	vmlaunch
1:
	incq nested_errors(%rbx)
	jmp vmx_pass

vmx_exit:
	/*
	 * A VM exit clears RFLAGS (SDM, volume 3C, "Loading Host RIP, RSP, SSP, and RFLAGS"); why our
	 * vCPUs have interrupts enabled, vm.cpp says
	 */
	sti
	push %rax
	push %rcx
	mov $vmcs_exit_reason, %eax
	vmread %rax, %rcx
	cmp $exit_ept_violation, %ecx
	je 2f
	/* What KVM of Linux 6.1 makes of page tables whose root is not there */
	cmp $exit_triple_fault, %ecx
	je 2f
	add $16, %rsp
	cmp $exit_vmcall, %ecx
	jne 1b
	incq nested_loops(%rbx)
	jmp vmx_pass
2:
	incq nested_faults(%rbx)
	/* Goes on where it was, with all its registers */
	pop %rcx
	pop %rax
	vmresume
	jmp 1b

vmx_guest:
	call pass
	vmcall
	ud2

pass:
	mov other(%rbp), %rsi
	jmp 2f
1:
	testb $0, (%rsi)
	add $4096, %rsi
2:
	cmp other_end(%rbp), %rsi
	jb 1b

	lea locations(%rbp), %r13
read_each:
	mov shared_newest(%rbp), %r15
	mov data(%r13), %rax
	mov (%rax), %rax
	call judge
	add $location_size, %r13
	cmp end(%rbp), %r13
	jb read_each

	lea locations(%rbp), %r13
execute_each:
	mov shared_newest(%rbp), %r15
	call *code(%r13)
	call judge
	add $location_size, %r13
	cmp end(%rbp), %r13
	jb execute_each

	/* One location per pass through KVM's own emulator */
	mov shared_newest(%rbp), %r15
	mov data(%r14), %rsi
	mov mailbox(%rbp), %rdi
	mov code(%r14), %rax
	add $to_mailbox, %rax
	call *%rax
	mov emulated(%rbx), %rax
	mov %r14, %r13
	call compare
	incq emulated_reads(%rbx)
	add $location_size, %r14
	cmp end(%rbp), %r14
	jb 1f
	lea locations(%rbp), %r14
1:
	incq loops(%rbx)
	ret

/*
 * Compares the version %rax from location %r13 with the newest seen before the access, by anybody
 * (%r15) and by this vCPU.  Returns the commit that it stems from in %rax, 0 if it stems from none.
 */
compare:
	cmp $hole, %rax
	je saw_hole
	mov bias(%r13), %rcx
	cmp $fixed, %rcx
	je compare_fixed
	add %rcx, %rax
	cmp newest(%rbx), %rax
	jb saw_torn
	cmp %r15, %rax
	jb saw_torn_across
	ret
compare_fixed:
	cmp $fixed_version, %rax
	je none
	incq wrong(%rbx)
	jmp none
saw_hole:
	incq holes(%rbx)
	jmp none
saw_torn:
	incq torn(%rbx)
	jmp none
saw_torn_across:
	incq torn_across(%rbx)
none:
	xor %eax, %eax
	ret

/* Compares, and lets everybody know about a version that was not seen before. */
judge:
	call compare
	cmp newest(%rbx), %rax
	jbe 2f
	mov %rax, newest(%rbx)
	incq versions(%rbx)
	mov %rax, %rdx
	mov shared_newest(%rbp), %rax
1:
	cmp %rdx, %rax
	jae 2f
	lock cmpxchg %rdx, shared_newest(%rbp)
	jne 1b
2:
	ret
guest_code_end:

/*
 * The code at each location.  The version is the immediate operand.  The second function stores the
 * data word to the mailbox, where there is no memory: KVM fetches the instruction, reads the data
 * and hands both to userspace as an MMIO write.
 */
location_code:
	.byte 0xb8
	.long 0
	ret
	.org location_code + to_mailbox
	movsq
	ret
location_code_end:

	.section .note.GNU-stack, "", @progbits
