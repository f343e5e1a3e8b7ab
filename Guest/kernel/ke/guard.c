// A check in the manner of Windows' kernel patch protection: what nobody may
// change, against what it was when the boot had ended. Every page of the image
// that is not writable is looked at whole, what follows a section in its last
// page with it; a page that is absent is not.

#include "../include/guard.h"
#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/ps.h"
#include "../include/rtl.h"
#include "../../common/pe.h"

#define IMAGE_PAGES 512

// What was damaged: the fourth parameter of CRITICAL_STRUCTURE_CORRUPTION
// (Microsoft, "Bug Check 0x109").
enum { DAMAGED_DATA = 0, DAMAGED_CODE = 1, DAMAGED_IDT = 2, DAMAGED_GDT = 3, DAMAGED_REGISTERS = 7 };

// What a processor holds in itself.
typedef struct {
    KDESCRIPTOR Idt, Gdt;
    USHORT Fill[2];
    ULONG_PTR Cr0, Cr4;
    ULONG64 Msrs[KI_GUARDED_MSR_COUNT];
} KI_REGISTERS;

typedef struct {
    KI_REGISTERS Registers;
    ULONG64 Idt, Gdt;
} KI_PROCESSOR_RECORD;

static ULONG64 KiPageHashes[IMAGE_PAGES]; // 0: not looked at
static ULONG64 KiDescriptorHash;
static KI_PROCESSOR_RECORD KiRecords[KI_MAXIMUM_PROCESSORS];
static KI_REGISTERS KiFound[KI_MAXIMUM_PROCESSORS];
static volatile KI_GUARD_MODE KiGuardMode;
static KEVENT KiGuardEvent;
volatile ULONG64 KiGuardChecks;

// Each step takes a state and a word to a state, one to one in either (the
// multiplier, FNV-1a's prime, is odd): two texts that differ in one word never
// have the same value.
static ULONG64 KiHash(const void *From, SIZE_T Size)
{
    const volatile ULONG64 *Words = From;
    ULONG64 Hash = 0xCBF29CE484222325;
    for (SIZE_T i = 0; i < Size / 8; i++)
        Hash = (Hash ^ Words[i]) * 0x100000001B3;
    return Hash;
}

static ULONG_PTR KiReadRegisters(ULONG_PTR Unused)
{
    static const ULONG Msrs[] = KI_GUARDED_MSRS;
    KI_REGISTERS *Registers = &KiFound[KeGetCurrentPrcb()->Number];
    (void)Unused;
    __asm__ volatile("sidt %0" : "=m"(Registers->Idt));
    __asm__ volatile("sgdt %0" : "=m"(Registers->Gdt));
    Registers->Cr0 = KiReadCr0();
    Registers->Cr4 = KiReadCr4();
    for (ULONG i = 0; i < KI_GUARDED_MSR_COUNT; i++)
        Registers->Msrs[i] = KiReadMsr(Msrs[i]);
    return 0;
}

// The descriptors that stay as they are.
static ULONG64 KiHashGdt(const KI_PROCESSOR *Processor)
{
    ULONG64 Gdt[GDT_ENTRIES];
    for (ULONG i = 0; i < GDT_ENTRIES; i++)
        Gdt[i] = KI_CHANGING_DESCRIPTOR(i) ? 0 : ((volatile const ULONG64 *)Processor->Gdt)[i];
    return KiHash(Gdt, sizeof Gdt);
}

static BOOLEAN KiIsPageThere(ULONG_PTR Address)
{
    MMPTE *Pte = MmFindPte(MiSystemRoot(), Address, FALSE);
    return Pte && (*Pte & PTE_PRESENT);
}

void KiGuardRecord(void)
{
    ULONG_PTR Base = (ULONG_PTR)MiBootBlock->kernelVirtualBase;
    const PE_HEADERS *Headers = PeHeaders((PVOID)Base);
    const PE_SECTION *Section = PeSections(Headers);

    for (ULONG i = 0; i < Headers->sectionCount; i++, Section++) {
        if (Section->characteristics & (PE_SECTION_DISCARDABLE | PE_SECTION_WRITE))
            continue;
        for (ULONG At = 0; At < Section->virtualSize; At += PAGE_SIZE) {
            ULONG Offset = Section->virtualAddress + At;
            KiPageHashes[Offset >> PAGE_SHIFT] = KiHash((PVOID)(Base + Offset), PAGE_SIZE);
        }
    }
    KiDescriptorHash = KiHash(KeServiceDescriptorTable, sizeof KeServiceDescriptorTable) ^
                       KiHash(KeServiceDescriptorTableShadow, sizeof KeServiceDescriptorTableShadow);
    KeIpiGenericCall(KiReadRegisters, 0);
    for (ULONG i = 0; i < (ULONG)KeNumberProcessors; i++) {
        KiRecords[i].Registers = KiFound[i];
        KiRecords[i].Idt = KiHash(KiProcessors[i]->Idt, sizeof KiProcessors[i]->Idt);
        KiRecords[i].Gdt = KiHashGdt(KiProcessors[i]);
    }
}

static void KiCorrupted(ULONG Kind, const volatile void *Where, ULONG64 Found)
{
    KeBugCheckEx(CRITICAL_STRUCTURE_CORRUPTION, 0, (ULONG_PTR)Found, (ULONG_PTR)Where, Kind);
}

// Below DISPATCH_LEVEL: a page may go while it is being read.
static void KiCheckIntegrity(void)
{
    ULONG_PTR Base = (ULONG_PTR)MiBootBlock->kernelVirtualBase;

    for (ULONG i = 0; i < IMAGE_PAGES; i++) {
        ULONG_PTR Page = Base + ((ULONG_PTR)i << PAGE_SHIFT);
        if (!KiPageHashes[i] || !KiIsPageThere(Page))
            continue;
        ULONG64 Hash = KiHash((PVOID)Page, PAGE_SIZE);
        if (Hash != KiPageHashes[i])
            KiCorrupted(DAMAGED_CODE, (PVOID)Page, Hash);
    }
    ULONG64 Descriptors = KiHash(KeServiceDescriptorTable, sizeof KeServiceDescriptorTable) ^
                          KiHash(KeServiceDescriptorTableShadow, sizeof KeServiceDescriptorTableShadow);
    if (Descriptors != KiDescriptorHash)
        KiCorrupted(DAMAGED_DATA, KeServiceDescriptorTable, Descriptors);
    KeIpiGenericCall(KiReadRegisters, 0);
    for (ULONG i = 0; i < (ULONG)KeNumberProcessors; i++) {
        const KI_PROCESSOR_RECORD *Record = &KiRecords[i];
        if (KiHash(KiProcessors[i]->Idt, sizeof KiProcessors[i]->Idt) != Record->Idt)
            KiCorrupted(DAMAGED_IDT, KiProcessors[i]->Idt, i);
        if (KiHashGdt(KiProcessors[i]) != Record->Gdt)
            KiCorrupted(DAMAGED_GDT, KiProcessors[i]->Gdt, i);
        if (memcmp(&KiFound[i], &Record->Registers, sizeof Record->Registers))
            KiCorrupted(DAMAGED_REGISTERS, &KiFound[i], i);
    }
    __atomic_fetch_add(&KiGuardChecks, 1, __ATOMIC_SEQ_CST);
}

void KiGuardCheckResumed(void)
{
    if (KiGuardMode != KiGuardOff)
        KiCheckIntegrity();
}

static void KiGuardThread(PVOID Context)
{
    LARGE_INTEGER Interval = {.QuadPart = -100 * 10000};
    (void)Context;
    for (;;) {
        KeWaitForSingleObject(&KiGuardEvent, 0, KernelMode, FALSE, NULL);
        if (KiGuardMode == KiGuardAlways)
            KiCheckIntegrity();
        KeDelayExecutionThread(KernelMode, FALSE, &Interval);
    }
}

void KiGuardStart(void)
{
    KeInitializeEvent(&KiGuardEvent, NotificationEvent, FALSE);
    KiGuardRecord();
    PspCreateThread(PsInitialSystemProcess, "guard", KiGuardThread, NULL);
}

void KiGuardSwitch(KI_GUARD_MODE Mode)
{
    KiGuardMode = Mode;
    if (Mode == KiGuardAlways)
        KeSetEvent(&KiGuardEvent, 0, FALSE);
    else
        KeResetEvent(&KiGuardEvent);
}
