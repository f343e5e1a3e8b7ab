// From real mode into the kernel, in one page below 1 MiB: how the other
// processors start (their first instruction is at the vector of the startup IPI
// times 4096), and how the boot processor comes back from sleep (at the firmware
// waking vector). The C side copies this to LOW_START and fills in where to go.
//
// CR4, EFER (with PAE, for NXE) and CR3 first, then CR0.PE and CR0.PG in one write.

#define LOW_START 0x8000
#define LOW(label) (LOW_START + (label) - _KiLowStart)
#define PARAMETER(at) (LOW_START + 0xF00 + (at))    // KI_LOW_START

    .section .rdata, "dr"
    .balign 16
    .globl _KiLowStart
_KiLowStart:
    .code16
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
#ifdef VIGIL_PAE
    movl $0x20, %eax                    // PAE
    movl %eax, %cr4
    movl $0xC0000080, %ecx              // IA32_EFER
    rdmsr
    orl $0x800, %eax                    // NXE
    wrmsr
#else
    movl $0x10, %eax                    // PSE
    movl %eax, %cr4
#endif
    movl PARAMETER(0), %eax
    movl %eax, %cr3
    lgdtl LOW(LowGdtPointer)
    movl $0x80010033, %eax              // PG, WP, NE, ET, MP, PE; caches on
    movl %eax, %cr0
    ljmpl $8, $LOW(LowStart32)

    .code32
LowStart32:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl PARAMETER(0x10), %esp
    pushl PARAMETER(0x18)
    pushl $0                            // nowhere to return to
    jmpl *PARAMETER(8)

    .balign 8
LowGdt:
    .quad 0
    .quad 0x00CF9B000000FFFF            // code
    .quad 0x00CF93000000FFFF            // data
LowGdtPointer:
    .short 23
    .long LOW(LowGdt)
    .globl _KiLowStartEnd
_KiLowStartEnd:
