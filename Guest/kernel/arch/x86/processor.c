// One processor: descriptor tables, tasks for what may strike anywhere,
// model-specific registers. Everything hangs from its KPCR. Not of INIT: a
// processor that comes back from sleep goes through here again.

#include "../../include/mp.h"
#include "../../include/rtl.h"

static KI_PROCESSOR KiInitialProcessor;

// trap.S, syscall.S
extern UCHAR KiDoubleFaultTask[], KiNmiTask[];
void KiFatalTrap(ULONG Vector);

// Access bytes: Intel SDM volume 3A, section 3.4.5.
#define CODE_R0 0x9B
#define DATA_R0 0x93
#define CODE_R3 0xFB
#define DATA_R3 0xF3
#define AVAILABLE_TSS 0x89
#define PAGES 0xC // 32 bits, the limit in pages
#define BYTES 0x4

static ULONG64 KiDescriptor(ULONG Base, ULONG Limit, ULONG Access, ULONG Flags)
{
    return (Limit & 0xFFFF) | (ULONG64)(Base & 0xFFFFFF) << 16 | (ULONG64)Access << 40 |
           (ULONG64)(Limit >> 16 & 15) << 48 | (ULONG64)Flags << 52 | (ULONG64)(Base >> 24) << 56;
}

static ULONG64 KiTaskDescriptor(const KTSS *Tss)
{
    return KiDescriptor((ULONG)Tss, sizeof *Tss - 1, AVAILABLE_TSS, 0);
}

static void KiInitializeGdt(KI_PROCESSOR *Processor)
{
    ULONG64 *Gdt = Processor->Gdt;

    Gdt[KGDT_R0_CODE / 8] = KiDescriptor(0, 0xFFFFF, CODE_R0, PAGES);
    Gdt[KGDT_R0_DATA / 8] = KiDescriptor(0, 0xFFFFF, DATA_R0, PAGES);
    Gdt[KGDT_R3_CODE / 8] = KiDescriptor(0, 0xFFFFF, CODE_R3, PAGES);
    Gdt[KGDT_R3_DATA / 8] = KiDescriptor(0, 0xFFFFF, DATA_R3, PAGES);
    Gdt[KGDT_TSS / 8] = KiTaskDescriptor(&Processor->Tss);
    Gdt[KGDT_R0_PCR / 8] = KiDescriptor((ULONG)&Processor->Pcr, sizeof(KPCR) - 1, DATA_R0, BYTES);
    Gdt[KGDT_R3_TEB / 8] = KiDescriptor(0, 0xFFF, DATA_R3, BYTES); // see KiSetTeb
    Gdt[KGDT_DF_TSS / 8] = KiTaskDescriptor(&Processor->DoubleFaultTss);
    Gdt[KGDT_NMI_TSS / 8] = KiTaskDescriptor(&Processor->NmiTss);

    KDESCRIPTOR Pointer = {GDT_ENTRIES * 8 - 1, (ULONG_PTR)Gdt};
    __asm__ volatile("lgdt %0" : : "m"(Pointer));
    __asm__ volatile(
        "ljmpl %0, $1f\n"
        "1:\n\t"
        "movl %1, %%eax\n\t"
        "movl %%eax, %%ss\n\t"
        "movl %2, %%eax\n\t"
        "movl %%eax, %%ds\n\t"
        "movl %%eax, %%es\n\t"
        "movl %3, %%eax\n\t"
        "movl %%eax, %%fs\n\t"
        "xorl %%eax, %%eax\n\t"
        "movl %%eax, %%gs\n\t"
        "lldt %%ax\n\t"
        "movw %4, %%ax\n\t"
        "ltr %%ax"
        : : "i"(KGDT_R0_CODE), "i"(KGDT_R0_DATA), "i"(KGDT_R3_DATA | 3), "i"(KGDT_R0_PCR),
          "i"(KGDT_TSS) : "eax", "memory");
}

static void KiSetGate(KIDTENTRY *Gate, USHORT Selector, ULONG Handler, UCHAR Attributes)
{
    Gate->OffsetLow = (USHORT)Handler;
    Gate->Selector = Selector;
    Gate->Reserved = 0;
    Gate->Attributes = Attributes;
    Gate->OffsetHigh = (USHORT)(Handler >> 16);
}

// Present interrupt gates; #BP, #OF and the system service may be raised by any
// ring. A double fault and an NMI are tasks, as on Windows.
static void KiInitializeIdt(KIDTENTRY *Idt)
{
    for (ULONG Vector = 0; Vector < 256; Vector++)
        KiSetGate(&Idt[Vector], KGDT_R0_CODE, (ULONG)KiVectorStubs + Vector * 16,
                  Vector == 3 || Vector == 4 ? 0xEE : 0x8E);
    KiSetGate(&Idt[0x2E], KGDT_R0_CODE, (ULONG)KiSystemService, 0xEE);
    KiSetGate(&Idt[2], KGDT_NMI_TSS, 0, 0x85);
    KiSetGate(&Idt[8], KGDT_DF_TSS, 0, 0x85);

    KDESCRIPTOR Pointer = {256 * sizeof *Idt - 1, (ULONG_PTR)Idt};
    __asm__ volatile("lidt %0" : : "m"(Pointer));
}

// A task with a stack of its own, in the system's space.
static void KiInitializeTask(KTSS *Tss, const UCHAR *Entry, PUCHAR Stack)
{
    RtlZeroMemory(Tss, sizeof *Tss);
    Tss->Cr3 = KiReadRoot();
    Tss->Eip = (ULONG)Entry;
    Tss->EFlags = 2;
    Tss->Esp = Tss->Esp0 = (ULONG)Stack + IST_STACK_SIZE;
    Tss->Ss = Tss->Ss0 = KGDT_R0_DATA;
    Tss->Cs = KGDT_R0_CODE;
    Tss->Ds = Tss->Es = KGDT_R3_DATA | 3;
    Tss->Fs = KGDT_R0_PCR;
    Tss->IoMapBase = sizeof *Tss;
}

// What was interrupted is in the task-state segment that was left. Does not return.
void KiFatalTrap(ULONG Vector)
{
    PKPCR Pcr = CONTAINING_RECORD(KeGetCurrentPrcb(), KPCR, Prcb);
    const KTSS *Tss = Pcr->TssBase;
    KTRAP_FRAME Frame = {
        .Eax = Tss->Eax, .Ecx = Tss->Ecx, .Edx = Tss->Edx, .Ebx = Tss->Ebx, .Esi = Tss->Esi,
        .Edi = Tss->Edi, .Ebp = Tss->Ebp, .Eip = Tss->Eip, .SegCs = Tss->Cs, .EFlags = Tss->EFlags,
        .HardwareEsp = Tss->Esp, .HardwareSegSs = Tss->Ss, .SegFs = Tss->Fs, .SegDs = Tss->Ds,
        .SegEs = Tss->Es, .SegGs = Tss->Gs,
    };
    KiDispatchTrap(&Frame, Vector);
}

static void KiInitializeControlRegisters(void)
{
    // CR4: OSFXSR and OSXMMEXCPT for SSE. CR0: MP, NE, WP; no EM, no TS, caches on.
    KiWriteCr4(KiReadCr4() | 0x200 | 0x400);
    KiWriteCr0((KiReadCr0() & ~0x6000000Cul) | 0x10022);
    __asm__ volatile("fninit");
}

void KiInitializeProcessor(KI_PROCESSOR *Processor, ULONG Number)
{
    PKPCR Pcr = &Processor->Pcr;

    KiInitializeTask(&Processor->DoubleFaultTss, KiDoubleFaultTask, Processor->IstStacks[0]);
    KiInitializeTask(&Processor->NmiTss, KiNmiTask, Processor->IstStacks[1]);
    Processor->Tss.Ss0 = KGDT_R0_DATA;
    Processor->Tss.IoMapBase = sizeof(KTSS);
    KiInitializeGdt(Processor);
    KiInitializeIdt(Processor->Idt);
    KiInitializeControlRegisters();

    Pcr->ExceptionList = (PVOID)~(ULONG_PTR)0;
    Pcr->GdtBase = Processor->Gdt;
    Pcr->TssBase = &Processor->Tss;
    Pcr->IdtBase = Processor->Idt;
    Pcr->SelfPcr = Pcr;
    Pcr->CurrentPrcb = &Pcr->Prcb;
    Pcr->MajorVersion = 1;
    Pcr->MinorVersion = 1;
    Pcr->Prcb.MajorVersion = 1;
    Pcr->Prcb.MinorVersion = 1;
    Pcr->Prcb.Number = Number;

    // SYSENTER: the kernel's code, from which the other three selectors follow (Intel
    // SDM volume 3A, section 5.8.7), a stack that it leaves at once, the entry.
    KiWriteMsr(0x174, KGDT_R0_CODE);
    KiWriteMsr(0x175, (ULONG_PTR)Processor->IstStacks[0] + IST_STACK_SIZE);
    KiWriteMsr(0x176, (ULONG_PTR)KiFastCallEntry);
}

INIT_CODE void KiInitializeBootProcessor(void)
{
    KiProcessors[0] = &KiInitialProcessor;
    KiInitializeProcessor(&KiInitialProcessor, 0);
}

// Ring 3 finds its TEB by FS, a debugger by the KPCR.
void KiSetTeb(PKTHREAD Thread)
{
    PKPCR Pcr = CONTAINING_RECORD(KeGetCurrentPrcb(), KPCR, Prcb);
    volatile ULONG64 *Descriptor = (ULONG64 *)Pcr->GdtBase + KGDT_R3_TEB / 8;
    Pcr->Self = Thread->Teb;
    *Descriptor = KiDescriptor((ULONG)Thread->Teb, 0xFFF, DATA_R3, BYTES);
}

void KiSwitchState(PKTHREAD To)
{
    PKPRCB Prcb = KeGetCurrentPrcb();
    PKPCR Pcr = CONTAINING_RECORD(Prcb, KPCR, Prcb);

    Prcb->CurrentThread = To;
    Pcr->StackBase = (PUCHAR)To->InitialStack - NPX_FRAME_LENGTH;
    Pcr->StackLimit = To->StackLimit;
    Pcr->TssBase->Esp0 = (ULONG)To->InitialStack - KERNEL_STACK_RESERVE;
    KiSetTeb(To);
    if (KiReadRoot() != To->ApcState.Process->DirectoryTableBase)
        KiWriteRoot(To->ApcState.Process->DirectoryTableBase);
}
