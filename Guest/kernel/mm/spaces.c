// Address spaces: the kernel's half, shared by all; a process's own half; the
// kernel stacks and the like, each between guard pages.

#include "../include/mm.h"
#include "../include/rtl.h"
#include "../include/shareddata.h"

ULONG64 MmUserProbeAddress = 0x7FFFFFFF0000;

static ULONG64 MiRoot;
static ULONG64 MiSharedDataFrame;
static volatile ULONG64 MiNextSystemPage = MM_SYSTEM_PTES_BASE;

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
    MmFindPte(MiRoot, MM_LOCAL_APIC_VA, TRUE);

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
    MiWritePte(&Table[MiBootBlock->selfMapIndex], Root | MM_KERNEL_RW);
    MmMapPage(Root, MM_SHARED_USER_DATA_VA, MiSharedDataFrame | MM_USER_R);
    return Root;
}

// For the few instructions between real mode and the kernel's own root: the
// processor must find the next one where it was before paging.
ULONG64 MmCreateLowRoot(void)
{
    ULONG64 Root = MmAllocateFrame(), Pointers = MmAllocateFrame(), Directory = MmAllocateFrame();
    // A CR3 is loaded from 32 bits there.
    if (!Root || !Pointers || !Directory || Root >> 32)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 12, Root, 0, 0);
    ULONG64 *Table = MmPhysicalToVirtual(Root);
    RtlCopyMemory(Table + 256, (ULONG64 *)MmPhysicalToVirtual(MiRoot) + 256, PAGE_SIZE / 2);
    Table[0] = Pointers | PTE_PRESENT | PTE_WRITE;
    *(ULONG64 *)MmPhysicalToVirtual(Pointers) = Directory | PTE_PRESENT | PTE_WRITE;
    *(ULONG64 *)MmPhysicalToVirtual(Directory) = PTE_PRESENT | PTE_WRITE | PTE_LARGE;
    return Root;
}

// Addresses between guard pages, never given back.
ULONG64 MmReserveSystemPages(SIZE_T Size)
{
    return PAGE_SIZE + __atomic_fetch_add(&MiNextSystemPage, PAGE_ALIGN_UP(Size) + PAGE_SIZE, __ATOMIC_SEQ_CST);
}

PVOID MmAllocateSystemPages(SIZE_T Size)
{
    ULONG64 Base = MmReserveSystemPages(Size);
    for (ULONG64 At = 0; At < Size; At += PAGE_SIZE) {
        ULONG64 Frame = MmAllocateFrame();
        if (!Frame)
            return NULL;
        MmMapPage(MiRoot, Base + At, Frame | MM_KERNEL_RW);
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
