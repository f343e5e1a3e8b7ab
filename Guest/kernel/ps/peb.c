// A process's own description of itself, in its memory: PEB, loader data, TEB.
// Layout: `dt ntdll!_PEB`, `_PEB_LDR_DATA`, `_LDR_DATA_TABLE_ENTRY`, `_TEB` of
// Windows 10 x64 public symbols.

#include "../include/mm.h"
#include "../include/ps.h"
#include "../include/rtl.h"
#include "../../common/pe.h"

typedef struct {
    LIST_ENTRY InLoadOrderLinks;           // 0x00
    LIST_ENTRY InMemoryOrderLinks;         // 0x10
    LIST_ENTRY InInitializationOrderLinks; // 0x20
    PVOID DllBase, EntryPoint;             // 0x30
    ULONG SizeOfImage, Fill;               // 0x40
    UNICODE_STRING FullDllName;            // 0x48
    UNICODE_STRING BaseDllName;            // 0x58
    UCHAR Reserved68[0x120 - 0x68];
} LDR_DATA_TABLE_ENTRY;
FIELD_AT(LDR_DATA_TABLE_ENTRY, DllBase, 0x30);
FIELD_AT(LDR_DATA_TABLE_ENTRY, BaseDllName, 0x58);

typedef struct {
    ULONG Length;
    UCHAR Initialized, Fill[3];
    PVOID SsHandle;
    LIST_ENTRY InLoadOrderModuleList;           // 0x10
    LIST_ENTRY InMemoryOrderModuleList;         // 0x20
    LIST_ENTRY InInitializationOrderModuleList; // 0x30
} PEB_LDR_DATA;
FIELD_AT(PEB_LDR_DATA, InLoadOrderModuleList, 0x10);

typedef struct {
    UCHAR Flags[8];
    PVOID Mutant;           // 0x08
    PVOID ImageBaseAddress; // 0x10
    PEB_LDR_DATA *Ldr;      // 0x18
} PEB;

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

static void PspLink(LIST_ENTRY *Here, ULONG64 Next, ULONG64 Previous)
{
    Here->Flink = (PLIST_ENTRY)Next;
    Here->Blink = (PLIST_ENTRY)Previous;
}

static void PspDescribeModule(PEB_BLOCK *Block, ULONG64 At, ULONG Index, const CHAR *Name,
                              ULONG64 Base, ULONG64 Size, ULONG64 Entry)
{
    static const CHAR Directory[] = "C:\\Windows\\System32\\";
    LDR_DATA_TABLE_ENTRY *Module = &Block->Modules[Index];
    WCHAR *Text = Block->Names[Index];
    ULONG64 UserText = At + offsetof(PEB_BLOCK, Names) + Index * sizeof Block->Names[0];
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

// The three lists run through the same entries at three offsets, 0x10 apart,
// in the head as in the entries. Initialization order has no program, only
// DLLs.
static void PspLinkModules(PEB_BLOCK *Block, ULONG64 At)
{
    ULONG64 Head = At + offsetof(PEB_BLOCK, Ldr.InLoadOrderModuleList);
    ULONG64 First = At + offsetof(PEB_BLOCK, Modules[0]);
    ULONG64 Second = At + offsetof(PEB_BLOCK, Modules[1]);
    LIST_ENTRY *Lists[3] = {&Block->Ldr.InLoadOrderModuleList,
                            &Block->Ldr.InMemoryOrderModuleList,
                            &Block->Ldr.InInitializationOrderModuleList};

    for (ULONG i = 0; i < 3; i++, Head += 16, First += 16, Second += 16) {
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
    ULONG64 Root = Process->Pcb.DirectoryTableBase;
    ULONG64 At = (ULONG64)Process->Peb;
    PEB_BLOCK *Block = ExAllocatePoolWithTag(PagedPool, sizeof *Block, ' beP');
    if (!Block)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 8, 0, 0, 0);

    const PE_HEADERS *Program = PeHeaders(MmPhysicalToVirtual(MiBootBlock->modules[2].base));
    Block->Peb.Mutant = (PVOID)~0ull;
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
PVOID PspBuildTeb(PEPROCESS Process, CLIENT_ID Cid, ULONG64 StackBase, ULONG64 StackLimit)
{
    ULONG64 Root = Process->Pcb.DirectoryTableBase;
    ULONG64 At = (ULONG64)Process->Peb + 0x1000 + (ULONG64)Process->ActiveThreads * 0x2000;
    struct {
        ULONG64 ExceptionList, StackBase, StackLimit; // 0x00
        ULONG64 Reserved18[3];
        ULONG64 Self;                                 // 0x30
        ULONG64 EnvironmentPointer;
        CLIENT_ID ClientId;                           // 0x40
        ULONG64 ActiveRpcHandle, ThreadLocalStorage;
        PVOID ProcessEnvironmentBlock;                // 0x60
    } Teb = {0};
    C_ASSERT(sizeof Teb == 0x68);

    Teb.StackBase = StackBase;
    Teb.StackLimit = StackLimit;
    Teb.Self = At;
    Teb.ClientId = Cid;
    Teb.ProcessEnvironmentBlock = Process->Peb;
    MmAllocateUserPages(Root, At, PAGE_SIZE, MM_USER_RW);
    MmCopyToSpace(Root, At, &Teb, sizeof Teb);
    return (PVOID)At;
}
