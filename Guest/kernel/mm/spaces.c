// Address spaces: the kernel's half, shared by all; a process's own half; the
// kernel stacks and the like, each between guard pages.

#include "../include/mm.h"
#include "../include/rtl.h"
#include "../include/shareddata.h"

ULONG_PTR MmUserProbeAddress = MM_USER_PROBE_ADDRESS;

static ULONG_PTR MiRoot;
static ULONG64 MiSharedDataFrame;
static volatile ULONG_PTR MiNextSystemPage = MM_SYSTEM_PTES_BASE;

ULONG_PTR MiSystemRoot(void)
{
    return MiRoot;
}

INIT_CODE void MiInitializeSpaces(const BOOT_BLOCK *Block)
{
    MiRoot = (ULONG_PTR)Block->pageTableRoot;
    // The loader's identity mapping goes, and what hangs from the upper half of a
    // root exists before the first copy, so that later changes reach all.
    MiPrepareSystemTables();
    KiWriteRoot(MiRoot);

    MiSharedDataFrame = MmAllocateFrame();
    MmMapPage(MiRoot, KI_USER_SHARED_DATA, (MMPTE)MiSharedDataFrame | MM_KERNEL_RW);
}

ULONG_PTR MmCreateAddressSpace(void)
{
    ULONG_PTR Root = MiCreateRoot();
    if (Root)
        MmMapPage(Root, MM_SHARED_USER_DATA_VA, (MMPTE)MiSharedDataFrame | MM_USER_R);
    return Root;
}

// Addresses between guard pages, never given back.
ULONG_PTR MmReserveSystemPages(SIZE_T Size)
{
    return PAGE_SIZE + __atomic_fetch_add(&MiNextSystemPage, PAGE_ALIGN_UP(Size) + PAGE_SIZE, __ATOMIC_SEQ_CST);
}

PVOID MmAllocateSystemPages(SIZE_T Size)
{
    ULONG_PTR Base = MmReserveSystemPages(Size);
    for (SIZE_T At = 0; At < Size; At += PAGE_SIZE) {
        ULONG64 Frame = MmAllocateFrame();
        if (!Frame)
            return NULL;
        MmMapPage(MiRoot, Base + At, (MMPTE)Frame | MM_KERNEL_RW);
    }
    return (PVOID)Base;
}

// Stacks of ended threads, for the next ones; linked through their lowest words.
static PVOID MiDeadStacks;
static KSPIN_LOCK MiDeadStackLock;

// Returns the lowest address of KERNEL_STACK_SIZE bytes.
PVOID MmCreateKernelStack(void)
{
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&MiDeadStackLock);
    PVOID Stack = MiDeadStacks;
    if (Stack)
        MiDeadStacks = *(PVOID *)Stack;
    KeReleaseSpinLock(&MiDeadStackLock, Irql);
    return Stack ? Stack : MmAllocateSystemPages(KERNEL_STACK_SIZE);
}

void MmDeleteKernelStack(PVOID StackLimit)
{
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&MiDeadStackLock);
    *(PVOID *)StackLimit = MiDeadStacks;
    MiDeadStacks = StackLimit;
    KeReleaseSpinLock(&MiDeadStackLock, Irql);
}

void MmAllocateUserPages(ULONG_PTR Root, ULONG_PTR Address, SIZE_T Size, MMPTE Rights)
{
    for (SIZE_T At = 0; At < PAGE_ALIGN_UP(Size); At += PAGE_SIZE) {
        ULONG64 Frame = MmAllocateFrame();
        if (!Frame)
            KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 2, Address, Size, 0);
        MmMapPage(Root, Address + At, (MMPTE)Frame | Rights);
    }
}

// Writes into a space that need not be the current one, whatever its rights.
void MmCopyToSpace(ULONG_PTR Root, ULONG_PTR Address, const void *From, SIZE_T Size)
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
