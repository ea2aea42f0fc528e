/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Option ROM of the test VM in Bochs: reads a kernel and all that it needs from
 * the first disk, and jumps to the kernel's PVH entry.  There is no boot loader
 * and nothing to decompress, which an emulated processor takes seconds for.
 *
 * bootdisk.py makes the disk, and has the other side of these numbers.  Its
 * first chunk begins with what is to be done: entry, %ebx, then sector, number of
 * chunks and address of each part, up to one without chunks.
 */
	.set	ROM, 0xd0000		/* where the BIOS finds it */
	.set	PLAN, 0x10000		/* where the first chunk goes */
	.set	STACK, 0x9000
	.set	BEEN_HERE, 0x9000	/* survives a reset, and Linux leaves the first 64 KiB alone */
	.set	CHUNK_SECTORS, 256

	.set	ATA_DATA, 0x1f0
	.set	ATA_COUNT, 0x1f2
	.set	ATA_STATUS, 0x1f7	/* read; written: the command */
	.set	ATA_CONTROL, 0x3f6
	.set	ATA_BUSY, 0x80
	.set	ATA_DATA_REQUEST, 0x08
	.set	ATA_READ, 0x20
	.set	ATA_NO_INTERRUPT, 0x02
	.set	ATA_FIRST_DISK, 0xe0	/* and sectors are counted through */
	.set	SHUTDOWN_PORT, 0x8900	/* Bochs ends when "Shutdown" is written here */

	.code16
rom:
	.byte	0x55, 0xaa, 1		/* an option ROM, of 512 bytes */
	cli
	cld
	inb	$0x92, %al		/* the 21st address line */
	orb	$0x02, %al
	andb	$0xfe, %al
	outb	%al, $0x92
	movw	%cs, %ax
	movw	%ax, %ds
	lgdtl	gdt_pointer - rom
	movl	$0x11, %eax		/* CR0.PE, CR0.ET */
	movl	%eax, %cr0
	ljmpl	$8, $(ROM + protected - rom)

	.code32
protected:
	movw	$16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	xorl	%eax, %eax
	movl	%eax, %cr4
	movl	$STACK, %esp

	/* A machine that boots again has ended: nobody wants it back */
	cmpl	$0x6d656d73, BEEN_HERE
	je	shut_down
	movl	$0x6d656d73, BEEN_HERE

	movw	$ATA_CONTROL, %dx
	movb	$ATA_NO_INTERRUPT, %al
	outb	%al, %dx
	xorl	%ebx, %ebx
	movl	$1, %esi
	movl	$PLAN, %edi
	call	read
	movl	$(PLAN + 8), %ebp
part:
	movl	(%ebp), %ebx
	movl	4(%ebp), %esi
	movl	8(%ebp), %edi
	addl	$12, %ebp
	testl	%esi, %esi
	jz	start
	call	read
	jmp	part
start:
	movl	PLAN + 4, %ebx
	jmp	*PLAN

/* Reads %esi chunks from sector %ebx on to %edi */
read:
	movw	$ATA_STATUS, %dx
1:	inb	%dx, %al
	testb	$ATA_BUSY, %al
	jnz	1b
	movw	$ATA_COUNT, %dx
	xorl	%eax, %eax		/* 0 means 256 */
	outb	%al, %dx
	movl	%ebx, %ecx
	/* The address of the first sector: a byte for each of three ports, the rest with the disk. */
	.rept	3
	incl	%edx
	movb	%cl, %al
	outb	%al, %dx
	shrl	$8, %ecx
	.endr
	incl	%edx
	movb	%cl, %al
	orb	$ATA_FIRST_DISK, %al
	outb	%al, %dx
	incl	%edx
	movb	$ATA_READ, %al
	outb	%al, %dx
	movl	$CHUNK_SECTORS, %eax
	pushl	%eax
sector:
	movw	$ATA_STATUS, %dx
2:	inb	%dx, %al
	andb	$(ATA_BUSY | ATA_DATA_REQUEST), %al
	cmpb	$ATA_DATA_REQUEST, %al
	jne	2b
	movw	$ATA_DATA, %dx
	movl	$256, %ecx
	rep insw
	decl	(%esp)
	jnz	sector
	popl	%eax
	addl	$CHUNK_SECTORS, %ebx
	decl	%esi
	jnz	read
	ret

shut_down:
	movl	$(ROM + word - rom), %esi
	movl	$8, %ecx
	movw	$SHUTDOWN_PORT, %dx
	rep outsb
	hlt

word:
	.ascii	"Shutdown"
	.balign	8
gdt:
	.quad	0
	.quad	0x00cf9b000000ffff	/* code */
	.quad	0x00cf93000000ffff	/* data */
gdt_pointer:
	.word	. - gdt - 1
	.long	ROM + gdt - rom
