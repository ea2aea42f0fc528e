/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the vCPUs run: 32-bit protected mode, flat segments, no paging.  The
 * host copies guest_start ... guest_end to GUEST_CODE and starts a routine
 * there with its arguments in registers.
 */
	.section .rodata
	.code32

	.globl guest_start, guest_scan, guest_store, guest_spin, guest_count
	.globl guest_store_slowly, guest_emulate, guest_end
guest_start:

/* Reads %ecx words from %esi on, %eax bytes apart, into the array at %edi. */
guest_scan:
	mov	(%esi), %edx
	mov	%edx, (%edi)
	add	%eax, %esi
	add	$4, %edi
	dec	%ecx
	jnz	guest_scan
	hlt

/* Writes %eax to offset 8 of %ecx pages from %esi on. */
guest_store:
	mov	%eax, 8(%esi)
	add	$4096, %esi
	dec	%ecx
	jnz	guest_store
	hlt

/* The same, with some thirty instructions from one page to the next. */
guest_store_slowly:
	mov	%eax, 8(%esi)
	add	$4096, %esi
	mov	$15, %edx
1:
	dec	%edx
	jnz	1b
	dec	%ecx
	jnz	guest_store_slowly
	hlt

/*
 * For ever: reads from and calls into each of %ecx pages from %esi on (there
 * is a RET at offset 16 of each), then counts the round at %edi.
 */
guest_spin:
	mov	%esi, %ebp
	mov	%ecx, %edx
1:
	mov	(%ebp), %eax
	lea	16(%ebp), %ebx
	call	*%ebx
	add	$4096, %ebp
	dec	%edx
	jnz	1b
	lock incl (%edi)
	jmp	guest_spin

/*
 * For ever: adds 1 to the word at offset 8 of each of %ecx pages from %esi on,
 * then counts the round at %edi.
 */
guest_count:
	mov	%esi, %ebp
	mov	%ecx, %edx
1:
	incl	8(%ebp)
	add	$4096, %ebp
	dec	%edx
	jnz	1b
	lock incl (%edi)
	jmp	guest_count

/*
 * For ever: copies the first word of each of %ecx pages from %esi on into a
 * register of KVM's I/O APIC, then counts the round at %edi.  KVM makes each
 * copy itself, and stays in the kernel.
 */
guest_emulate:
	mov	%edi, %ebx
	mov	%esi, %ebp
1:
	mov	%ebp, %esi
	mov	%ecx, %edx
2:
	mov	$0xfec00000, %edi
	movsl
	add	$4092, %esi
	dec	%edx
	jnz	2b
	lock incl (%ebx)
	jmp	1b

guest_end:

	.section .note.GNU-stack, "", @progbits
