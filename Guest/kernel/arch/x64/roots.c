// x64: roots, of 512 entries each. The upper half is everybody's.

#include "../../include/mm.h"
#include "../../include/rtl.h"
#include "../../include/shareddata.h"

INIT_CODE void MiPrepareSystemTables(void)
{
    MiWritePte(MmPhysicalToVirtual(MiSystemRoot()), 0);
    MmFindPte(MiSystemRoot(), MM_SYSTEM_PTES_BASE, TRUE);
    MmFindPte(MiSystemRoot(), MM_NONPAGED_POOL_BASE, TRUE);
    MmFindPte(MiSystemRoot(), MM_LOCAL_APIC_VA, TRUE);
    MmFindPte(MiSystemRoot(), KI_USER_SHARED_DATA, TRUE);
}

static MMPTE *MiCopyRoot(ULONG64 Root)
{
    MMPTE *Table = MmPhysicalToVirtual(Root);
    RtlCopyMemory(Table + 256, (MMPTE *)MmPhysicalToVirtual(MiSystemRoot()) + 256, PAGE_SIZE / 2);
    return Table;
}

ULONG_PTR MiCreateRoot(void)
{
    ULONG64 Root = MmAllocateFrame();
    if (!Root)
        return 0;
    MMPTE *Table = MiCopyRoot(Root);
    MiWritePte(&Table[MiBootBlock->selfMapIndex], Root | MM_KERNEL_RW);
    return Root;
}

// For the few instructions between real mode and the kernel's own root: the
// processor must find the next one where it was before paging.
ULONG_PTR MmCreateLowRoot(void)
{
    ULONG64 Root = MmAllocateFrame(), Pointers = MmAllocateFrame(), Directory = MmAllocateFrame();
    // A CR3 is loaded from 32 bits there.
    if (!Root || !Pointers || !Directory || Root >> 32)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 12, Root, 0, 0);
    MiWritePte(MiCopyRoot(Root), Pointers | PTE_PRESENT | PTE_WRITE);
    MiWritePte(MmPhysicalToVirtual(Pointers), Directory | PTE_PRESENT | PTE_WRITE);
    MiWritePte(MmPhysicalToVirtual(Directory), PTE_PRESENT | PTE_WRITE | PTE_LARGE);
    return Root;
}
