// Writing all memory in use to the disk, with every processor parked and this
// one at IPI_LEVEL: no lock is taken, no memory allocated, nothing waited for
// but the disk. The state to come back to was saved before.

#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/rtl.h"
#include "../../common/ata.h"
#include "../../common/hibernation.h"

static PUCHAR MiBuffer; // what is being written: memory changes meanwhile
static ULONG_PTR MiWindow;
static volatile MMPTE *MiWindowPte;

static ULONG64 MiImageSize(void)
{
    ULONG64 Size = MmFramesEnd() - HIBERNATION_START;
    return (Size + HIBERNATION_CHUNK - 1) & ~(HIBERNATION_CHUNK - 1);
}

// At PASSIVE_LEVEL: whether there is a disk, and room on it.
NTSTATUS MmPrepareImage(void)
{
    static USHORT Identity[ATA_SECTOR / 2];
    ULONG64 Sectors = AtaSectors(Identity);

    if (Sectors == 0)
        return STATUS_NOT_SUPPORTED;
    if (!MiBuffer) {
        MiWindow = MmReserveSystemPages(PAGE_SIZE);
        MiWindowPte = MmFindPte(MiSystemRoot(), MiWindow, TRUE);
        MiBuffer = MmAllocateSystemPages(HIBERNATION_CHUNK);
    }
    if (!MiBuffer || !MiWindowPte)
        return STATUS_NO_MEMORY;
    // Some room for what is allocated between now and then.
    if (MiImageSize() / ATA_SECTOR + 4096 > Sectors)
        return STATUS_DISK_FULL;
    return STATUS_SUCCESS;
}

void MmCloseImageWindow(void)
{
    // A guest that wakes has no IDT yet: nothing is written that need not be.
    if (!MiWindowPte || !(*MiWindowPte & PTE_PRESENT))
        return;
    MiWritePte(MiWindowPte, 0);
    KeInvalidatePage(MiWindow);
}

// The frames of the kernel's image are not in the direct map.
static void MiCopyFrame(PVOID To, ULONG64 Frame)
{
    if (Frame - MiBootBlock->kernelPhysicalBase >= LARGE_PAGE_SIZE) {
        RtlCopyMemory(To, MmPhysicalToVirtual(Frame), PAGE_SIZE);
        return;
    }
    MiWritePte(MiWindowPte, (MMPTE)Frame | PTE_PRESENT | PTE_NX);
    KeInvalidatePage(MiWindow);
    RtlCopyMemory(To, (PVOID)MiWindow, PAGE_SIZE);
    MmCloseImageWindow();
}

static BOOLEAN MiWriteHeader(const HIBERNATION_HEADER *Header)
{
    RtlZeroMemory(MiBuffer, ATA_SECTOR);
    if (Header)
        *(HIBERNATION_HEADER *)MiBuffer = *Header;
    return AtaWrite(0, MiBuffer, 1) && AtaFlush();
}

BOOLEAN MmDiscardImage(void)
{
    return MiWriteHeader(NULL);
}

// The header comes last: an image that was not written to its end is none.
BOOLEAN MmWriteImage(const KI_LOW_START *Where)
{
    HIBERNATION_HEADER Header = {
        HIBERNATION_MAGIC, MI_PAGING, MiImageSize(), HIBERNATION_HASH_BEGIN, MiBootBlock->directMapSize,
        Where->Root, Where->Entry, Where->Stack, Where->Argument,
    };
    ULONG Sector = 1;

    if (!MmDiscardImage())
        return FALSE;
    for (ULONG64 At = 0; At < Header.size; At += HIBERNATION_CHUNK) {
        for (ULONG Page = 0; Page < HIBERNATION_CHUNK; Page += PAGE_SIZE)
            MiCopyFrame(MiBuffer + Page, HIBERNATION_START + At + Page);
        Header.hash = HibernationHash(Header.hash, MiBuffer, HIBERNATION_CHUNK);
        if (!AtaWrite(Sector, MiBuffer, HIBERNATION_CHUNK / ATA_SECTOR))
            return FALSE;
        Sector += HIBERNATION_CHUNK / ATA_SECTOR;
    }
    return MiWriteHeader(&Header);
}
