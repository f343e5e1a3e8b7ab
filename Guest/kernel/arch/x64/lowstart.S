// From real mode into the kernel, in one page below 1 MiB: how the other
// processors start (their first instruction is at the vector of the startup IPI
// times 4096), and how the boot processor comes back from sleep (at the firmware
// waking vector). The C side copies this to LOW_START and fills in where to go.
//
// Straight into IA-32e mode: CR4.PAE, CR3 and EFER.LME first, then CR0.PE and
// CR0.PG in one write (Intel SDM volume 3A, section 9.8.5, less its detour by
// protected mode).

#define LOW_START 0x8000
#define LOW(label) (LOW_START + (label) - KiLowStart)
#define PARAMETER(at) (LOW_START + 0xF00 + (at))    // KI_LOW_START

    .section .rdata, "dr"
    .balign 16
    .globl KiLowStart
KiLowStart:
    .code16
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    movl $0x20, %eax                    // PAE
    movl %eax, %cr4
    movl PARAMETER(0), %eax
    movl %eax, %cr3
    movl $0xC0000080, %ecx              // IA32_EFER
    rdmsr
    orl $0x901, %eax                    // SCE, LME, NXE
    wrmsr
    lgdtl LOW(LowGdtPointer)
    movl $0x80010033, %eax              // PG, WP, NE, ET, MP, PE; caches on
    movl %eax, %cr0
    ljmpl $8, $LOW(LowStart64)

    .code64
LowStart64:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movq PARAMETER(0x10), %rsp
    movq PARAMETER(0x18), %rcx
    subq $0x28, %rsp
    jmpq *PARAMETER(8)

    .balign 8
LowGdt:
    .quad 0
    .quad 0x00AF9B000000FFFF            // 64-bit code
    .quad 0x00CF93000000FFFF            // data
LowGdtPointer:
    .short 23
    .long LOW(LowGdt)
    .globl KiLowStartEnd
KiLowStartEnd:
