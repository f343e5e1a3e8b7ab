// The kernel's list of its own modules: one, ntoskrnl.exe. The entry has the
// layout of the user-mode one up to BaseDllName (KLDR_DATA_TABLE_ENTRY).

#include "../include/mm.h"
#include "../include/ps.h"
#include "../../common/build.h"
#include "../../common/pe.h"

LIST_ENTRY PsLoadedModuleList;

typedef struct {
    LIST_ENTRY InLoadOrderLinks;  // x64: 0x00, x86: 0x00
    PVOID ExceptionTable;         // 0x10, 0x08
    ULONG_PTR ExceptionTableSize;
    PVOID GpValue, NonPagedDebugInfo;
    PVOID DllBase;                // 0x30, 0x18
    PVOID EntryPoint;             // 0x38, 0x1C
    ULONG_PTR SizeOfImage;        // 0x40, 0x20; of 32 bits
    UNICODE_STRING FullDllName;   // 0x48, 0x24
    UNICODE_STRING BaseDllName;   // 0x58, 0x2C
    ULONG Flags;                  // 0x68, 0x34
    USHORT LoadCount, Fill2;
    ULONG_PTR Reserved[6];
} KLDR_DATA_TABLE_ENTRY;
FIELD_AT(KLDR_DATA_TABLE_ENTRY, DllBase, 6 * sizeof(PVOID));
FIELD_AT(KLDR_DATA_TABLE_ENTRY, SizeOfImage, 8 * sizeof(PVOID));
FIELD_AT(KLDR_DATA_TABLE_ENTRY, BaseDllName, NT_64 ? 0x58 : 0x2C);

static WCHAR PspKernelPath[] = L"\\SystemRoot\\system32\\" NT_KERNEL_NAME;
#define DIRECTORY_LENGTH 21

INIT_CODE void PsInitializeLoadedModuleList(void)
{
    KLDR_DATA_TABLE_ENTRY *Kernel =
        ExAllocatePoolWithTag(NonPagedPoolNx, sizeof *Kernel, 'dLmM');
    ULONG_PTR Base = MiBootBlock->kernelVirtualBase;

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
