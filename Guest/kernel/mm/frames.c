// Physical page frames: fresh ones from the memory map, upwards; freed ones
// from a list threaded through the frames themselves.

#include "../include/mm.h"
#include "../include/rtl.h"

const BOOT_BLOCK *MiBootBlock;
static ULONG64 MiNextFrame; // physical address
static ULONG64 MiFreeFrames; // head of the list; 0: none
static KSPIN_LOCK MiFrameLock;

INIT_CODE void MiInitializeFrames(const BOOT_BLOCK *Block)
{
    MiNextFrame = PAGE_ALIGN_UP(Block->firstFreeAddress);
}

// The first usable frame at or above `Address`.
static ULONG64 MiUsableFrame(ULONG64 Address)
{
    ULONG64 Best = 0;
    for (ULONG64 i = 0; i < MiBootBlock->rangeCount; i++) {
        const BOOT_MEMORY_RANGE *Range = &MiBootBlock->ranges[i];
        if (Range->kind != BOOT_MEMORY_USABLE)
            continue;
        ULONG64 Start = PAGE_ALIGN_UP(Range->base);
        if (Start < Address)
            Start = Address;
        if (Start + PAGE_SIZE <= Range->base + Range->size && (!Best || Start < Best))
            Best = Start;
    }
    return Best;
}

ULONG64 MmFramesEnd(void)
{
    return MiNextFrame;
}

ULONG64 MmAllocateFrame(void)
{
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&MiFrameLock);
    ULONG64 Frame = MiFreeFrames;
    if (Frame) {
        MiFreeFrames = *(ULONG64 *)MmPhysicalToVirtual(Frame);
    } else {
        Frame = MiUsableFrame(MiNextFrame);
        if (Frame)
            MiNextFrame = Frame + PAGE_SIZE;
    }
    KeReleaseSpinLock(&MiFrameLock, Irql);
    if (Frame)
        RtlZeroMemory(MmPhysicalToVirtual(Frame), PAGE_SIZE);
    return Frame;
}

void MmFreeFrame(ULONG64 Frame)
{
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&MiFrameLock);
    *(ULONG64 *)MmPhysicalToVirtual(Frame) = MiFreeFrames;
    MiFreeFrames = Frame;
    KeReleaseSpinLock(&MiFrameLock, Irql);
}
