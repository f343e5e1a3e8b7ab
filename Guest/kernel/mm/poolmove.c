// Hybrid sleep: the pages of the non-paged pool go away while the machine
// sleeps, and come back at the same addresses in other frames, as Windows' do.

#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/rtl.h"

// The frames of a region: first the new ones, after the move the old.
static struct {
    ULONG64 *Frames;
    ULONG_PTR Count;
} MiMoved[MmPoolRegions];
static BOOLEAN MiPoolGone;

static ULONG_PTR MiPoolPage(ULONG Region, ULONG_PTR Page)
{
    return MiPoolRegionBase(Region) + Page * PAGE_SIZE;
}

static volatile MMPTE *MiPoolPte(ULONG Region, ULONG_PTR Page)
{
    return MmFindPte(MiSystemRoot(), MiPoolPage(Region, Page), FALSE);
}

// At PASSIVE_LEVEL: the frames to move to. Pages that the pool gains from now on
// stay where they are.
NTSTATUS MmPreparePoolMove(void)
{
    for (ULONG Region = 0; Region < MmPoolRegions; Region++) {
        if (!MiMoved[Region].Frames)
            MiMoved[Region].Frames =
                MmAllocateSystemPages(MM_NONPAGED_POOL_SIZE / PAGE_SIZE * sizeof(ULONG64));
        if (!MiMoved[Region].Frames)
            return STATUS_NO_MEMORY;
    }
    for (ULONG Region = 0; Region < MmPoolRegions; Region++) {
        ULONG_PTR Pages = MiPoolRegionMapped(Region) / PAGE_SIZE;
        MiMoved[Region].Count = 0;
        while (MiMoved[Region].Count < Pages) {
            ULONG64 Frame = MmAllocateFrame();
            if (!Frame)
                break;
            MiMoved[Region].Frames[MiMoved[Region].Count++] = Frame;
        }
    }
    return STATUS_SUCCESS;
}

// With every other processor parked; from here to MmReturnPool nothing may look
// at the pool, the current thread's object included.
void MmTakePoolAway(void)
{
    for (ULONG Region = 0; Region < MmPoolRegions; Region++) {
        for (ULONG_PTR i = 0; i < MiMoved[Region].Count; i++) {
            volatile MMPTE *Pte = MiPoolPte(Region, i);
            ULONG64 Old = *Pte & PTE_FRAME, New = MiMoved[Region].Frames[i];
            RtlCopyMemory(MmPhysicalToVirtual(New), MmPhysicalToVirtual(Old), PAGE_SIZE);
            // The frame that it will be in waits in the entry, which is not valid.
            MiWritePte(Pte, (MMPTE)New);
            MiMoved[Region].Frames[i] = Old;
            KeInvalidatePage(MiPoolPage(Region, i));
        }
    }
    MiPoolGone = TRUE;
}

void MmReturnPool(void)
{
    if (!MiPoolGone)
        return; // it did not go: the memory is that of before, read from the disk
    for (ULONG Region = 0; Region < MmPoolRegions; Region++) {
        for (ULONG_PTR i = 0; i < MiMoved[Region].Count; i++) {
            volatile MMPTE *Pte = MiPoolPte(Region, i);
            MiWritePte(Pte, (*Pte & PTE_FRAME) | MiPoolRegionRights(Region));
        }
    }
    MiPoolGone = FALSE;
}

// At PASSIVE_LEVEL again: the frames that the pool is not in, new or old, are
// filled with what no pointer can be and given back.
void MmFinishPoolMove(void)
{
    for (ULONG Region = 0; Region < MmPoolRegions; Region++) {
        for (ULONG_PTR i = 0; i < MiMoved[Region].Count; i++) {
            memset(MmPhysicalToVirtual(MiMoved[Region].Frames[i]), 0xDD, PAGE_SIZE);
            MmFreeFrame(MiMoved[Region].Frames[i]);
        }
        MiMoved[Region].Count = 0;
    }
}
