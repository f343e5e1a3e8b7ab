// What an attacker does to a running system, on request, and beside each attack
// something that looks like it and is nobody's fault. Nothing that is changed
// here is in use by the guest itself, so that it goes on working.

#include "../include/console.h"
#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/ps.h"
#include "../include/rtl.h"
#include "../../common/pe.h"

#define UNUSED_VECTOR 0x60
#define UNUSED_SERVICE 0x26
#define OTHER_SERVICE 0x25
#define HOOK_SIZE 5

extern NTSTATUS NtNotImplemented0(void);

static ULONG_PTR ConWindow;

// The image's frames are mapped nowhere else and its code is read-only: who
// wants to write there maps the frame once more, and should take that mapping
// away again with ConDropAlias.
static volatile UCHAR *ConAlias(ULONG_PTR Address)
{
    if (!ConWindow)
        ConWindow = MmReserveSystemPages(PAGE_SIZE);
    MmMapPage(MiSystemRoot(), ConWindow,
              ((MMPTE)MmGetPhysicalAddress(MiSystemRoot(), Address) & PTE_FRAME) | MM_KERNEL_RW);
    return (volatile UCHAR *)ConWindow + (Address & (PAGE_SIZE - 1));
}

static void ConDropAlias(void)
{
    MmUnmapPage(MiSystemRoot(), ConWindow);
}

static PEPROCESS ConProgram(void)
{
    for (PLIST_ENTRY Link = PsActiveProcessHead.Flink; Link != &PsActiveProcessHead; Link = Link->Flink) {
        PEPROCESS Process = CONTAINING_RECORD(Link, EPROCESS, ActiveProcessLinks);
        if (RtlStringEqual(Process->ImageFileName, "app.exe"))
            return Process;
    }
    KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 20, 0, 0, 0);
}

// A byte of the program's memory, wherever its frame is.
static volatile UCHAR *ConProgramByte(ULONG_PTR Address)
{
    ULONG64 Physical = MmGetPhysicalAddress(ConProgram()->Pcb.DirectoryTableBase, Address);
    if (Physical == ~0ull)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 21, Address, 0, 0);
    return MmPhysicalToVirtual(Physical);
}

// Each is called with what it is not already: on after off, off after on. Each
// returns the address that it changed.

static ULONG_PTR ConAttackCode(BOOLEAN On)
{
    static UCHAR Original;
    volatile UCHAR *Byte = ConAlias((ULONG_PTR)NtNotImplemented0);
    if (On)
        Original = *Byte;
    *Byte = On ? Original ^ 0xFF : Original;
    ConDropAlias();
    return (ULONG_PTR)NtNotImplemented0;
}

static ULONG_PTR ConNearCode(BOOLEAN On)
{
    (void)On;
    static volatile UCHAR Code; // data of the kernel's, in the image as the code is
    Code ^= 0xFF;
    return (ULONG_PTR)&Code;
}

// The page gets another frame, with the same contents.
static ULONG_PTR ConAttackTranslation(BOOLEAN On)
{
    static MMPTE Original;
    ULONG_PTR Page = (ULONG_PTR)NtNotImplemented0 & ~(PAGE_SIZE - 1);
    volatile MMPTE *Pte = MmFindPte(MiSystemRoot(), Page, FALSE);
    if (On) {
        ULONG64 Frame = MmAllocateFrame();
        if (!Frame)
            return 0;
        RtlCopyMemory(MmPhysicalToVirtual(Frame), (PVOID)Page, PAGE_SIZE);
        Original = *Pte;
        *Pte = (Original & ~PTE_FRAME) | (MMPTE)Frame;
        KeFlushSingleTb(Page);
    } else {
        ULONG64 Frame = *Pte & PTE_FRAME;
        *Pte = Original;
        KeFlushSingleTb(Page);
        MmFreeFrame(Frame);
    }
    return Page;
}

// The processor forgets that it used the page; it will note it again.
static ULONG_PTR ConNearTranslation(BOOLEAN On)
{
    ULONG_PTR Page = (ULONG_PTR)NtNotImplemented0 & ~(PAGE_SIZE - 1);
    MMPTE *Pte = MmFindPte(MiSystemRoot(), Page, FALSE);
    if (On)
        __atomic_and_fetch(Pte, ~(MMPTE)0x60, __ATOMIC_SEQ_CST);
    else
        __atomic_or_fetch(Pte, (MMPTE)0x60, __ATOMIC_SEQ_CST);
    KeFlushSingleTb(Page);
    return Page;
}

static ULONG_PTR ConAttackIdt(BOOLEAN On)
{
    KI_PROCESSOR *Processor = KiProcessors[(ULONG)KeNumberProcessors - 1];
    volatile KIDTENTRY *Gate = &Processor->Idt[UNUSED_VECTOR];
    static USHORT Original;
    if (On)
        Original = Gate->OffsetLow;
    Gate->OffsetLow = On ? Original ^ 0x10 : Original;
    return (ULONG_PTR)Gate;
}

// What the processor keeps right behind its table.
static ULONG_PTR ConNearIdt(BOOLEAN On)
{
    KI_PROCESSOR *Processor = KiProcessors[(ULONG)KeNumberProcessors - 1];
    (void)On;
    Processor->IstStacks[0][0] ^= 0xFF;
    return (ULONG_PTR)&Processor->IstStacks[0][0];
}

static ULONG_PTR ConAttackService(BOOLEAN On)
{
    static LONG Original;
    volatile LONG *Entry = (volatile LONG *)ConAlias((ULONG_PTR)&KiServiceTable[UNUSED_SERVICE]);
    if (On)
        Original = *Entry;
    *Entry = On ? ((volatile LONG *)KiServiceTable)[OTHER_SERVICE] : Original;
    ConDropAlias();
    return (ULONG_PTR)&KiServiceTable[UNUSED_SERVICE];
}

// A variable that holds a service's address.
static ULONG_PTR ConNearService(BOOLEAN On)
{
    static volatile LONG Entry;
    (void)On;
    Entry ^= ((volatile LONG *)KiServiceTable)[OTHER_SERVICE];
    return (ULONG_PTR)&Entry;
}

static ULONG_PTR ConAttackNtdll(BOOLEAN On)
{
    static UCHAR Original[HOOK_SIZE];
    static const UCHAR Hook[HOOK_SIZE] = {0xE9, 0xF0, 0xFF, 0xFF, 0x7F}; // jmp, far away
    const void *File = MmPhysicalToVirtual(MiBootBlock->modules[1].base);
    ULONG_PTR Address = PspUserLayout.NtdllBase +
                      MiFindFileExport(File, MiBootBlock->modules[1].size, "NtOpenProcess");
    for (ULONG i = 0; i < HOOK_SIZE; i++) {
        volatile UCHAR *Byte = ConProgramByte(Address + i);
        if (On)
            Original[i] = *Byte;
        *Byte = On ? Hook[i] : Original[i];
    }
    return Address;
}

// The end of the page that holds the program's PEB.
static ULONG_PTR ConNearNtdll(BOOLEAN On)
{
    ULONG_PTR Address = (ULONG_PTR)ConProgram()->Peb + PAGE_SIZE - 1;
    (void)On;
    *ConProgramByte(Address) ^= 0xFF;
    return Address;
}

static ULONG_PTR ConSwitchRegion(BOOLEAN On, ULONG_PTR Address, MMPTE Rights)
{
    ULONG_PTR Root = ConProgram()->Pcb.DirectoryTableBase;
    if (On) {
        MmAllocateUserPages(Root, Address, 2 * PAGE_SIZE, Rights);
        return Address;
    }
    for (ULONG_PTR At = Address; At < Address + 2 * PAGE_SIZE; At += PAGE_SIZE) {
        ULONG64 Frame = MmGetPhysicalAddress(Root, At);
        MmUnmapPage(Root, At);
        MmFreeFrame(Frame);
    }
    return Address;
}

static ULONG_PTR ConAttackRegion(BOOLEAN On)
{
    return ConSwitchRegion(On, PSP_UNUSED_REGION, MM_USER_RX);
}

static ULONG_PTR ConNearRegion(BOOLEAN On)
{
    return ConSwitchRegion(On, PSP_OTHER_UNUSED_REGION, MM_USER_RW);
}

typedef struct {
    const CHAR *Name;
    ULONG_PTR (*Switch[2])(BOOLEAN On); // the attack, and what looks like it
    BOOLEAN On[2];
} CONSOLE_ATTACK;

static CONSOLE_ATTACK ConAttacks[] = {
    {"code", {ConAttackCode, ConNearCode}, {0}},
    {"translation", {ConAttackTranslation, ConNearTranslation}, {0}},
    {"idt", {ConAttackIdt, ConNearIdt}, {0}},
    {"service", {ConAttackService, ConNearService}, {0}},
    {"ntdll", {ConAttackNtdll, ConNearNtdll}, {0}},
    {"region", {ConAttackRegion, ConNearRegion}, {0}},
};

static void ConSwitchAttack(CONSOLE_COMMAND *Command, ULONG Which)
{
    BOOLEAN On = Command->Count < 3 || !RtlStringEqual(Command->Words[2], "off");
    if (Command->Count > 2 && On) {
        ConAnswer(&Command->Tag, "error say off or nothing");
        return;
    }
    for (ULONG i = 0; i < ARRAY_COUNT(ConAttacks); i++) {
        CONSOLE_ATTACK *Attack = &ConAttacks[i];
        if (!RtlStringEqual(Command->Words[1], Attack->Name))
            continue;
        if (Attack->On[Which] == On) {
            ConAnswer(&Command->Tag, "error it is so already");
            return;
        }
        ULONG_PTR Address = Attack->Switch[Which](On);
        if (!Address) {
            ConAnswer(&Command->Tag, "error no memory");
            return;
        }
        Attack->On[Which] = On;
        ConAnswer(&Command->Tag, "ok %s=%s address=0x%llx", Attack->Name, On ? "on" : "off",
                  (ULONG64)Address);
        return;
    }
    ConAnswer(&Command->Tag, "error nothing is called %s", Command->Words[1]);
}

void ConAttack(CONSOLE_COMMAND *Command)
{
    ConSwitchAttack(Command, 0);
}

void ConNear(CONSOLE_COMMAND *Command)
{
    ConSwitchAttack(Command, 1);
}
