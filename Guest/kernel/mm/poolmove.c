// Hybrid sleep: the pages of the non-paged pool go away while the machine
// sleeps, and come back at the same addresses in other frames, as Windows' do.

#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/rtl.h"

static ULONG64 *MiMovedFrames; // first the new ones, after the move the old
static ULONG64 MiMovedCount;
static BOOLEAN MiPoolGone;

static volatile ULONG64 *MiPoolPte(ULONG64 Page)
{
    return MmFindPte(MiSystemRoot(), MM_NONPAGED_POOL_BASE + Page * PAGE_SIZE, FALSE);
}

// At PASSIVE_LEVEL: the frames to move to. Pages that the pool gains from now on
// stay where they are.
NTSTATUS MmPreparePoolMove(void)
{
    MM_POOL_STATISTICS *Statistics;

    if (!MiMovedFrames)
        MiMovedFrames = MmAllocateSystemPages(MM_NONPAGED_POOL_SIZE / PAGE_SIZE * sizeof(ULONG64));
    Statistics = ExAllocatePoolWithTag(NonPagedPool, sizeof *Statistics, 'tatS');
    if (!MiMovedFrames || !Statistics)
        return STATUS_NO_MEMORY;
    MmQueryPool(Statistics);
    MiMovedCount = Statistics->Mapped / PAGE_SIZE;
    ExFreePoolWithTag(Statistics, 'tatS');
    for (ULONG64 i = 0; i < MiMovedCount; i++) {
        if (!(MiMovedFrames[i] = MmAllocateFrame())) {
            MiMovedCount = i;
            break;
        }
    }
    return STATUS_SUCCESS;
}

// With every other processor parked; from here to MmReturnPool nothing may look
// at the pool, the current thread's object included.
void MmTakePoolAway(void)
{
    for (ULONG64 i = 0; i < MiMovedCount; i++) {
        volatile ULONG64 *Pte = MiPoolPte(i);
        ULONG64 Old = *Pte & PTE_FRAME;
        RtlCopyMemory(MmPhysicalToVirtual(MiMovedFrames[i]), MmPhysicalToVirtual(Old), PAGE_SIZE);
        // The frame that it will be in waits in the entry, which is not valid.
        *Pte = MiMovedFrames[i];
        MiMovedFrames[i] = Old;
        KeInvalidatePage(MM_NONPAGED_POOL_BASE + i * PAGE_SIZE);
    }
    MiPoolGone = TRUE;
}

void MmReturnPool(void)
{
    if (!MiPoolGone)
        return; // it did not go: the memory is that of before, read from the disk
    for (ULONG64 i = 0; i < MiMovedCount; i++) {
        volatile ULONG64 *Pte = MiPoolPte(i);
        *Pte = (*Pte & PTE_FRAME) | MM_KERNEL_RW;
    }
    MiPoolGone = FALSE;
}

// At PASSIVE_LEVEL again: the frames that the pool is not in, new or old, are
// filled with what no pointer can be and given back.
void MmFinishPoolMove(void)
{
    for (ULONG64 i = 0; i < MiMovedCount; i++) {
        memset(MmPhysicalToVirtual(MiMovedFrames[i]), 0xDD, PAGE_SIZE);
        MmFreeFrame(MiMovedFrames[i]);
    }
    MiMovedCount = 0;
}
