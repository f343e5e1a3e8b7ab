// The kernel's list of its own modules: one, ntoskrnl.exe. The entry has the
// layout of the user-mode one up to BaseDllName (KLDR_DATA_TABLE_ENTRY).

#include "../include/mm.h"
#include "../include/ps.h"
#include "../../common/pe.h"

LIST_ENTRY PsLoadedModuleList;

typedef struct {
    LIST_ENTRY InLoadOrderLinks;  // 0x00
    PVOID ExceptionTable;         // 0x10
    ULONG ExceptionTableSize, Fill0;
    PVOID GpValue, NonPagedDebugInfo;
    PVOID DllBase;                // 0x30
    PVOID EntryPoint;             // 0x38
    ULONG SizeOfImage, Fill1;     // 0x40
    UNICODE_STRING FullDllName;   // 0x48
    UNICODE_STRING BaseDllName;   // 0x58
    ULONG Flags;                  // 0x68
    USHORT LoadCount, Fill2;
    UCHAR Reserved70[0xA0 - 0x70];
} KLDR_DATA_TABLE_ENTRY;
FIELD_AT(KLDR_DATA_TABLE_ENTRY, DllBase, 0x30);
FIELD_AT(KLDR_DATA_TABLE_ENTRY, SizeOfImage, 0x40);
FIELD_AT(KLDR_DATA_TABLE_ENTRY, BaseDllName, 0x58);

static WCHAR PspKernelPath[] = L"\\SystemRoot\\system32\\ntoskrnl.exe";
#define DIRECTORY_LENGTH 21

INIT_CODE void PsInitializeLoadedModuleList(void)
{
    KLDR_DATA_TABLE_ENTRY *Kernel =
        ExAllocatePoolWithTag(NonPagedPoolNx, sizeof *Kernel, 'dLmM');
    ULONG64 Base = MiBootBlock->kernelVirtualBase;

    if (!Kernel)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 9, 0, 0, 0);
    Kernel->DllBase = (PVOID)Base;
    Kernel->EntryPoint = (PVOID)(Base + PeHeaders((PVOID)Base)->entryPoint);
    Kernel->SizeOfImage = (ULONG)MiBootBlock->kernelImageSize;
    Kernel->FullDllName = (UNICODE_STRING){sizeof PspKernelPath - 2, sizeof PspKernelPath,
                                           PspKernelPath};
    Kernel->BaseDllName = (UNICODE_STRING){sizeof PspKernelPath - 2 - DIRECTORY_LENGTH * 2,
                                           sizeof PspKernelPath - DIRECTORY_LENGTH * 2,
                                           PspKernelPath + DIRECTORY_LENGTH};
    Kernel->LoadCount = 1;
    InitializeListHead(&PsLoadedModuleList);
    InsertTailList(&PsLoadedModuleList, &Kernel->InLoadOrderLinks);
}
