// Address spaces: the kernel's half, shared by all; a process's own half; the
// kernel stacks, each between guard pages.

#include "../include/mm.h"
#include "../include/rtl.h"
#include "../include/shareddata.h"

ULONG64 MmUserProbeAddress = 0x7FFFFFFF0000;

static ULONG64 MiRoot;
static ULONG64 MiSharedDataFrame;
static ULONG64 MiNextStack = MM_SYSTEM_PTES_BASE;

ULONG64 MiSystemRoot(void)
{
    return MiRoot;
}

INIT_CODE void MiInitializeSpaces(const BOOT_BLOCK *Block)
{
    MiRoot = Block->pageTableRoot;
    // The loader's identity mapping goes; from here on the low half is empty.
    *(ULONG64 *)MmPhysicalToVirtual(MiRoot) = 0;
    __asm__ volatile("movq %0, %%cr3" : : "r"(MiRoot) : "memory");

    // Every root copies the upper half when it is made. So that later changes
    // reach all, what hangs from it exists before the first copy.
    MmFindPte(MiRoot, MM_SYSTEM_PTES_BASE, TRUE);
    MmFindPte(MiRoot, MM_NONPAGED_POOL_BASE, TRUE);

    MiSharedDataFrame = MmAllocateFrame();
    MmMapPage(MiRoot, KI_USER_SHARED_DATA, MiSharedDataFrame | MM_KERNEL_RW);
}

ULONG64 MmCreateAddressSpace(void)
{
    ULONG64 Root = MmAllocateFrame();
    if (!Root)
        return 0;
    ULONG64 *Table = MmPhysicalToVirtual(Root);
    RtlCopyMemory(Table + 256, (ULONG64 *)MmPhysicalToVirtual(MiRoot) + 256, PAGE_SIZE / 2);
    Table[MiBootBlock->selfMapIndex] = Root | MM_KERNEL_RW;
    MmMapPage(Root, MM_SHARED_USER_DATA_VA, MiSharedDataFrame | MM_USER_R);
    return Root;
}

// Returns the lowest address of KERNEL_STACK_SIZE bytes.
PVOID MmCreateKernelStack(void)
{
    ULONG64 Flags = KiAcquireDispatcherLock();
    ULONG64 Base = MiNextStack + PAGE_SIZE;
    MiNextStack = Base + KERNEL_STACK_SIZE;
    KiReleaseDispatcherLock(Flags);

    for (ULONG64 At = 0; At < KERNEL_STACK_SIZE; At += PAGE_SIZE) {
        ULONG64 Frame = MmAllocateFrame();
        if (!Frame)
            return NULL;
        MmMapPage(MiRoot, Base + At, Frame | MM_KERNEL_RW);
    }
    return (PVOID)Base;
}

void MmAllocateUserPages(ULONG64 Root, ULONG64 Address, SIZE_T Size, ULONG64 Rights)
{
    for (ULONG64 At = 0; At < PAGE_ALIGN_UP(Size); At += PAGE_SIZE) {
        ULONG64 Frame = MmAllocateFrame();
        if (!Frame)
            KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 2, Address, Size, 0);
        MmMapPage(Root, Address + At, Frame | Rights);
    }
}

// Writes into a space that need not be the current one, whatever its rights.
void MmCopyToSpace(ULONG64 Root, ULONG64 Address, const void *From, SIZE_T Size)
{
    const UCHAR *Bytes = From;
    while (Size) {
        SIZE_T Part = PAGE_SIZE - (Address & (PAGE_SIZE - 1));
        if (Part > Size)
            Part = Size;
        ULONG64 Physical = MmGetPhysicalAddress(Root, Address);
        if (Physical == ~0ull)
            KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 3, Address, Size, 0);
        RtlCopyMemory(MmPhysicalToVirtual(Physical), Bytes, Part);
        Address += Part;
        Bytes += Part;
        Size -= Part;
    }
}
