// x86: roots. Without physical address extension a page directory of 1024 entries,
// the upper half of which is everybody's; with it four entries that name page
// directories, of which the third is everybody's and the fourth, since it maps the
// page tables, is not. All page tables of the kernel's half exist before the first
// root is made.

#include "../../include/mm.h"
#include "../../include/rtl.h"
#include "../../include/shareddata.h"

#define TABLE_SPAN (PAGE_SIZE << MM_LEVEL_BITS) // of addresses, that one page table maps

static INIT_CODE void MiPrepareRegion(ULONG_PTR Base, SIZE_T Size)
{
    for (SIZE_T At = 0; At < Size; At += TABLE_SPAN)
        MmFindPte(MiSystemRoot(), Base + At, TRUE);
}

// The entry that maps what `Address` and its neighbours in one page table are.
static MMPTE *MiDirectoryEntry(ULONG_PTR Root, ULONG_PTR Address)
{
    MMPTE *Table = MmPhysicalToVirtual(Root);
#ifdef VIGIL_PAE
    Table = MmPhysicalToVirtual(Table[Address >> 30] & PTE_FRAME);
#endif
    return &Table[Address >> (PAGE_SHIFT + MM_LEVEL_BITS) & ((1u << MM_LEVEL_BITS) - 1)];
}

INIT_CODE void MiPrepareSystemTables(void)
{
    MiWritePte(MiDirectoryEntry(MiSystemRoot(), 0), 0);
    MiPrepareRegion(MM_NONPAGED_POOL_BASE, MmPoolRegions * MM_NONPAGED_POOL_SIZE);
    MiPrepareRegion(MM_SYSTEM_PTES_BASE, MM_SYSTEM_PTES_SIZE);
    MiPrepareRegion(KI_USER_SHARED_DATA, PAGE_SIZE);
    MiPrepareRegion(MM_LOCAL_APIC_VA, PAGE_SIZE);
}

#ifdef VIGIL_PAE

#define ROOT_SIZE 32
#define DIRECTORIES 4

// A root is four entries, 32 bytes, of which a page holds many, as on Windows.
static ULONG_PTR MiAllocateRoot(void)
{
    static ULONG_PTR Next;
    static KSPIN_LOCK Lock;
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&Lock);
    if ((Next & (PAGE_SIZE - 1)) == 0)
        Next = (ULONG_PTR)MmAllocateFrame();
    ULONG_PTR Root = Next;
    if (Root)
        Next += ROOT_SIZE;
    KeReleaseSpinLock(&Lock, Irql);
    return Root;
}

ULONG_PTR MiCreateRoot(void)
{
    ULONG_PTR Root = MiAllocateRoot();
    const MMPTE *System = MmPhysicalToVirtual(MiSystemRoot());
    ULONG64 Frames[DIRECTORIES];

    if (!Root)
        return 0;
    for (ULONG i = 0; i < DIRECTORIES; i++) {
        Frames[i] = i == 2 ? System[2] & PTE_FRAME : MmAllocateFrame();
        if (!Frames[i])
            return 0;
        MiWritePte((MMPTE *)MmPhysicalToVirtual(Root) + i, Frames[i] | PTE_PRESENT);
    }
    RtlCopyMemory(MmPhysicalToVirtual(Frames[3]), MmPhysicalToVirtual(System[3] & PTE_FRAME), PAGE_SIZE);
    for (ULONG i = 0; i < DIRECTORIES; i++)
        MiWritePte(MiDirectoryEntry(Root, MM_PTE_BASE) + i, Frames[i] | MM_KERNEL_RW);
    return Root;
}

#else

ULONG_PTR MiCreateRoot(void)
{
    ULONG_PTR Root = (ULONG_PTR)MmAllocateFrame();
    if (!Root)
        return 0;
    RtlCopyMemory(MiDirectoryEntry(Root, 0x80000000), MiDirectoryEntry(MiSystemRoot(), 0x80000000),
                  PAGE_SIZE / 2);
    MiWritePte(MiDirectoryEntry(Root, MM_PTE_BASE), Root | MM_KERNEL_RW);
    return Root;
}

#endif

// For the few instructions between real mode and the kernel's own root: the
// processor must find the next one where it was before paging.
ULONG_PTR MmCreateLowRoot(void)
{
    ULONG_PTR Root = MiCreateRoot();
    if (!Root)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 12, Root, 0, 0);
    MiWritePte(MiDirectoryEntry(Root, 0), PTE_PRESENT | PTE_WRITE | PTE_LARGE);
    return Root;
}
