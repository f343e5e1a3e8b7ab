// A process's own description of itself, in its memory: PEB, loader data, TEB.
// Layout: `dt ntdll!_PEB`, `_PEB_LDR_DATA`, `_LDR_DATA_TABLE_ENTRY`, `_TEB` of
// public symbols, Windows 10 x64 and Windows 7 x86, whose fields up to here are the
// same but for the width of a pointer.

#include "../include/mm.h"
#include "../include/ps.h"
#include "../include/rtl.h"
#include "../../common/build.h"
#include "../../common/pe.h"

typedef struct {
    LIST_ENTRY InLoadOrderLinks;           // x64: 0x00, x86: 0x00
    LIST_ENTRY InMemoryOrderLinks;         // 0x10, 0x08
    LIST_ENTRY InInitializationOrderLinks; // 0x20, 0x10
    PVOID DllBase, EntryPoint;             // 0x30, 0x18
    ULONG_PTR SizeOfImage;                 // 0x40, 0x20; of 32 bits
    UNICODE_STRING FullDllName;            // 0x48, 0x24
    UNICODE_STRING BaseDllName;            // 0x58, 0x2C
    ULONG_PTR Reserved[23];
} LDR_DATA_TABLE_ENTRY;
FIELD_AT(LDR_DATA_TABLE_ENTRY, DllBase, NT_64 ? 0x30 : 0x18);
FIELD_AT(LDR_DATA_TABLE_ENTRY, SizeOfImage, NT_64 ? 0x40 : 0x20);
FIELD_AT(LDR_DATA_TABLE_ENTRY, FullDllName, NT_64 ? 0x48 : 0x24);
FIELD_AT(LDR_DATA_TABLE_ENTRY, BaseDllName, NT_64 ? 0x58 : 0x2C);

typedef struct {
    ULONG Length;
    UCHAR Initialized, Fill[3];
    PVOID SsHandle;
    LIST_ENTRY InLoadOrderModuleList;           // 0x10, 0x0C
    LIST_ENTRY InMemoryOrderModuleList;         // 0x20, 0x14
    LIST_ENTRY InInitializationOrderModuleList; // 0x30, 0x1C
} PEB_LDR_DATA;
FIELD_AT(PEB_LDR_DATA, InLoadOrderModuleList, NT_64 ? 0x10 : 0x0C);

typedef struct {
    UCHAR Flags[sizeof(PVOID)];
    PVOID Mutant;           // 0x08, 0x04
    PVOID ImageBaseAddress; // 0x10, 0x08
    PEB_LDR_DATA *Ldr;      // 0x18, 0x0C
} PEB;
FIELD_AT(PEB, ImageBaseAddress, NT_64 ? 0x10 : 0x08);
FIELD_AT(PEB, Ldr, NT_64 ? 0x18 : 0x0C);

#define MODULES 2
#define NAME_MAXIMUM 64

// One block of user memory; this is how it looks from the kernel while built.
typedef struct {
    PEB Peb;
    UCHAR PebRest[0x800 - sizeof(PEB)];
    PEB_LDR_DATA Ldr;
    LDR_DATA_TABLE_ENTRY Modules[MODULES];
    WCHAR Names[MODULES][NAME_MAXIMUM];
} PEB_BLOCK;
C_ASSERT(sizeof(PEB_BLOCK) <= 0x1000);

#define USER(block, field) ((PVOID)((block) + offsetof(PEB_BLOCK, field)))

static void PspLink(LIST_ENTRY *Here, ULONG_PTR Next, ULONG_PTR Previous)
{
    Here->Flink = (PLIST_ENTRY)Next;
    Here->Blink = (PLIST_ENTRY)Previous;
}

static void PspDescribeModule(PEB_BLOCK *Block, ULONG_PTR At, ULONG Index, const CHAR *Name,
                              ULONG_PTR Base, ULONG_PTR Size, ULONG Entry)
{
    static const CHAR Directory[] = "C:\\Windows\\System32\\";
    LDR_DATA_TABLE_ENTRY *Module = &Block->Modules[Index];
    WCHAR *Text = Block->Names[Index];
    ULONG_PTR UserText = At + offsetof(PEB_BLOCK, Names) + Index * sizeof Block->Names[0];
    USHORT Prefix = sizeof Directory - 1;
    USHORT Length = (USHORT)RtlStringLength(Name);

    for (USHORT i = 0; i < Prefix; i++)
        Text[i] = (WCHAR)Directory[i];
    for (USHORT i = 0; i < Length && Prefix + i + 1 < NAME_MAXIMUM; i++)
        Text[Prefix + i] = (WCHAR)Name[i];
    Module->DllBase = (PVOID)Base;
    Module->EntryPoint = Entry ? (PVOID)(Base + Entry) : NULL;
    Module->SizeOfImage = (ULONG)Size;
    Module->FullDllName = (UNICODE_STRING){(USHORT)((Prefix + Length) * 2),
                                           (USHORT)((Prefix + Length + 1) * 2), (WCHAR *)UserText};
    Module->BaseDllName = (UNICODE_STRING){(USHORT)(Length * 2), (USHORT)((Length + 1) * 2),
                                           (WCHAR *)(UserText + Prefix * 2)};
}

#define LINK sizeof(LIST_ENTRY)

// The three lists run through the same entries at three offsets, a link apart,
// in the head as in the entries. Initialization order has no program, only
// DLLs.
static void PspLinkModules(PEB_BLOCK *Block, ULONG_PTR At)
{
    ULONG_PTR Head = At + offsetof(PEB_BLOCK, Ldr.InLoadOrderModuleList);
    ULONG_PTR First = At + offsetof(PEB_BLOCK, Modules[0]);
    ULONG_PTR Second = At + offsetof(PEB_BLOCK, Modules[1]);
    LIST_ENTRY *Lists[3] = {&Block->Ldr.InLoadOrderModuleList,
                            &Block->Ldr.InMemoryOrderModuleList,
                            &Block->Ldr.InInitializationOrderModuleList};

    for (ULONG i = 0; i < 3; i++, Head += LINK, First += LINK, Second += LINK) {
        LIST_ENTRY *A = &Block->Modules[0].InLoadOrderLinks + i;
        LIST_ENTRY *B = &Block->Modules[1].InLoadOrderLinks + i;
        if (i < 2) {
            PspLink(Lists[i], First, Second);
            PspLink(A, Second, Head);
            PspLink(B, Head, First);
        } else {
            PspLink(Lists[i], Second, Second);
            PspLink(A, First, First);
            PspLink(B, Head, Head);
        }
    }
}

void PspBuildPeb(PEPROCESS Process, const CHAR *Name)
{
    ULONG_PTR Root = Process->Pcb.DirectoryTableBase;
    ULONG_PTR At = (ULONG_PTR)Process->Peb;
    PEB_BLOCK *Block = ExAllocatePoolWithTag(PagedPool, sizeof *Block, ' beP');
    if (!Block)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 8, 0, 0, 0);

    const PE_HEADERS *Program = PeHeaders(MmPhysicalToVirtual(MiBootBlock->modules[2].base));
    Block->Peb.Mutant = (PVOID)~(ULONG_PTR)0;
    Block->Peb.ImageBaseAddress = Process->SectionBaseAddress;
    Block->Peb.Ldr = USER(At, Ldr);
    Block->Ldr.Length = sizeof(PEB_LDR_DATA);
    Block->Ldr.Initialized = TRUE;
    PspDescribeModule(Block, At, 0, Name, PspUserLayout.ProgramBase, PspUserLayout.ProgramSize,
                      Program->entryPoint);
    PspDescribeModule(Block, At, 1, "ntdll.dll", PspUserLayout.NtdllBase,
                      PspUserLayout.NtdllSize, 0);
    PspLinkModules(Block, At);

    MmAllocateUserPages(Root, At, PAGE_SIZE, MM_USER_RW);
    MmCopyToSpace(Root, At, Block, sizeof *Block);
    ExFreePoolWithTag(Block, ' beP');
}

// One page a thread, after the PEB: NT_TIB, ClientId, the PEB's address.
PVOID PspBuildTeb(PEPROCESS Process, CLIENT_ID Cid, ULONG_PTR StackBase, ULONG_PTR StackLimit)
{
    ULONG_PTR Root = Process->Pcb.DirectoryTableBase;
    ULONG_PTR At = (ULONG_PTR)Process->Peb + 0x1000 + Process->ActiveThreads * PSP_TEB_DISTANCE;
    struct {
        ULONG_PTR ExceptionList, StackBase, StackLimit; // x64: 0x00, x86: 0x00
        ULONG_PTR Reserved[3];
        ULONG_PTR Self;                                 // 0x30, 0x18
        ULONG_PTR EnvironmentPointer;
        CLIENT_ID ClientId;                             // 0x40, 0x20
        ULONG_PTR ActiveRpcHandle, ThreadLocalStorage;
        PVOID ProcessEnvironmentBlock;                  // 0x60, 0x30
    } Teb = {0};
    C_ASSERT(sizeof Teb == (NT_64 ? 0x68 : 0x34));

    Teb.StackBase = StackBase;
    Teb.StackLimit = StackLimit;
    Teb.Self = At;
    Teb.ClientId = Cid;
    Teb.ProcessEnvironmentBlock = Process->Peb;
    MmAllocateUserPages(Root, At, PAGE_SIZE, MM_USER_RW);
    MmCopyToSpace(Root, At, &Teb, sizeof Teb);
    return (PVOID)At;
}
