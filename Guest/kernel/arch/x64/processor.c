// One processor: descriptor tables, stacks for what may strike anywhere,
// model-specific registers. Everything hangs from its KPCR. Not of INIT: a
// processor that comes back from sleep goes through here again.

#include "../../include/mp.h"

static KI_PROCESSOR KiInitialProcessor;

// Interrupt-stack-table slots, as Windows numbers them.
#define IST_DOUBLE_FAULT 1
#define IST_MACHINE_CHECK 2
#define IST_NMI 3

static void KiInitializeGdt(ULONG64 *Gdt, KTSS *Tss)
{
    ULONG64 Base = (ULONG64)Tss;

    Gdt[KGDT64_R0_CODE / 8] = 0x00209B0000000000;
    Gdt[KGDT64_R0_DATA / 8] = 0x00CF93000000FFFF;
    Gdt[KGDT64_R3_CMCODE / 8] = 0x00CFFB000000FFFF;
    Gdt[KGDT64_R3_DATA / 8] = 0x00CFF3000000FFFF;
    Gdt[KGDT64_R3_CODE / 8] = 0x0020FB0000000000;
    // A 64-bit TSS descriptor: Intel SDM volume 3A, section 8.2.3.
    Gdt[KGDT64_SYS_TSS / 8] = (sizeof *Tss - 1) | (Base & 0xFFFFFF) << 16 |
                              0x89ull << 40 | (Base >> 24 & 0xFF) << 56;
    Gdt[KGDT64_SYS_TSS / 8 + 1] = Base >> 32;

    KDESCRIPTOR Pointer = {GDT_ENTRIES * 8 - 1, (ULONG64)Gdt};
    __asm__ volatile("lgdt %0" : : "m"(Pointer));
    __asm__ volatile(
        "pushq %0\n\t"
        "leaq 1f(%%rip), %%rax\n\t"
        "pushq %%rax\n\t"
        "lretq\n"
        "1:\n\t"
        "movl %1, %%eax\n\t"
        "movl %%eax, %%ss\n\t"
        "movl %2, %%eax\n\t"
        "movl %%eax, %%ds\n\t"
        "movl %%eax, %%es\n\t"
        "xorl %%eax, %%eax\n\t"
        "movl %%eax, %%fs\n\t"
        "movl %%eax, %%gs\n\t"
        "movw %3, %%ax\n\t"
        "ltr %%ax"
        : : "i"(KGDT64_R0_CODE), "i"(KGDT64_R0_DATA), "i"(KGDT64_R3_DATA | 3),
          "i"(KGDT64_SYS_TSS) : "rax", "memory");
}

static void KiInitializeIdt(KIDTENTRY *Idt)
{
    for (ULONG Vector = 0; Vector < 256; Vector++) {
        ULONG64 Handler = (ULONG64)KiVectorStubs + Vector * 16;
        Idt[Vector].OffsetLow = (USHORT)Handler;
        Idt[Vector].Selector = KGDT64_R0_CODE;
        Idt[Vector].Ist = 0;
        // A present interrupt gate; #BP and #OF may be raised by any ring.
        Idt[Vector].Attributes = Vector == 3 || Vector == 4 ? 0xEE : 0x8E;
        Idt[Vector].OffsetMiddle = (USHORT)(Handler >> 16);
        Idt[Vector].OffsetHigh = (ULONG)(Handler >> 32);
        Idt[Vector].Reserved = 0;
    }
    Idt[2].Ist = IST_NMI;
    Idt[8].Ist = IST_DOUBLE_FAULT;
    Idt[18].Ist = IST_MACHINE_CHECK;

    KDESCRIPTOR Pointer = {256 * sizeof *Idt - 1, (ULONG64)Idt};
    __asm__ volatile("lidt %0" : : "m"(Pointer));
}

typedef struct {
    ULONG Eax, Ebx, Ecx, Edx;
} KI_CPUID;

static KI_CPUID KiCpuid(ULONG Leaf)
{
    KI_CPUID Result = {Leaf, 0, 0, 0};
    __asm__ volatile("cpuid" : "+a"(Result.Eax), "=b"(Result.Ebx), "+c"(Result.Ecx), "=d"(Result.Edx));
    return Result;
}

static void KiInitializeControlRegisters(void)
{
    // CR4: OSFXSR and OSXMMEXCPT for SSE, PGE.
    ULONG_PTR Value = KiReadCr4() | 0x200 | 0x400 | 0x80;
    // SMEP, where CPUID.(7,0):EBX[7] has it: the kernel never runs user code.
    if (KiCpuid(0).Eax >= 7 && (KiCpuid(7).Ebx & 0x80))
        Value |= 0x100000;
    KiWriteCr4(Value);
    // CR0: MP, NE, WP; no EM, no TS, caches on.
    KiWriteCr0((KiReadCr0() & ~0x6000000Cull) | 0x10022);
    __asm__ volatile("fninit");
}

void KiInitializeProcessor(KI_PROCESSOR *Processor, ULONG Number)
{
    PKPCR Pcr = &Processor->Pcr;

    KiInitializeGdt(Processor->Gdt, &Processor->Tss);
    KiInitializeIdt(Processor->Idt);
    KiInitializeControlRegisters();

    for (ULONG i = 0; i < 3; i++)
        Processor->Tss.Ist[i] = (ULONG64)Processor->IstStacks[i] + IST_STACK_SIZE;
    Processor->Tss.IoMapBase = sizeof(KTSS);

    Pcr->GdtBase = Processor->Gdt;
    Pcr->TssBase = &Processor->Tss;
    Pcr->IdtBase = Processor->Idt;
    Pcr->Self = Pcr;
    Pcr->CurrentPrcb = &Pcr->Prcb;
    Pcr->MajorVersion = 1;
    Pcr->MinorVersion = 1;
    Pcr->Prcb.MxCsr = 0x1F80;
    Pcr->Prcb.Number = Number;

    KiWriteMsr(0xC0000101, (ULONG64)Pcr); // IA32_GS_BASE
    KiWriteMsr(0xC0000102, 0);            // IA32_KERNEL_GS_BASE: see KiSetTeb
    // SYSCALL: selectors (Intel SDM volume 3A, section 5.8.8), entries, and
    // the flags it clears: TF, IF, DF and NT, as Windows does.
    KiWriteMsr(0xC0000081, (ULONG64)(KGDT64_R3_CMCODE | 3) << 48 |
                               (ULONG64)KGDT64_R0_CODE << 32);
    KiWriteMsr(0xC0000082, (ULONG64)KiSystemCall64);
    KiWriteMsr(0xC0000083, (ULONG64)KiSystemCall32);
    KiWriteMsr(0xC0000084, 0x4700);
}

INIT_CODE void KiInitializeBootProcessor(void)
{
    KiProcessors[0] = &KiInitialProcessor;
    KiInitializeProcessor(&KiInitialProcessor, 0);
}

void KiSetTeb(PKTHREAD Thread)
{
    KiWriteMsr(0xC0000102, (ULONG64)Thread->Teb); // IA32_KERNEL_GS_BASE: the user's
}

void KiSwitchState(PKTHREAD To)
{
    PKPRCB Prcb = KeGetCurrentPrcb();
    PKPCR Pcr = CONTAINING_RECORD(Prcb, KPCR, Prcb);

    Prcb->CurrentThread = To;
    Prcb->RspBase = (ULONG64)To->InitialStack;
    Pcr->TssBase->Rsp[0] = (ULONG64)To->InitialStack;
    KiSetTeb(To);
    if (KiReadRoot() != To->ApcState.Process->DirectoryTableBase)
        KiWriteRoot(To->ApcState.Process->DirectoryTableBase);
}
