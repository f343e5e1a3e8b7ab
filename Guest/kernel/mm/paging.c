// Pageable code: taken away from the kernel's address space, its entries left in
// the forms of Windows, and given back when it is next needed. The frames keep
// their contents throughout, as those of Windows' standby list do; nothing is
// written to a disk.
//
// A page-table entry with bit 0 clear (`dt nt!_MMPTE_TRANSITION`,
// `_MMPTE_PROTOTYPE`): bits 5 to 9 are the protection; bit 11 says that the page
// is in transition, its frame where it always is; bit 10, that bits 16 to 63 are
// the address of another entry, the prototype, which says where the page is. On
// x86 the prototype's address is told in another way: see archmm.h.

#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/rtl.h"
#include "../../common/pe.h"

#define PTE_PROTOTYPE ((MMPTE)0x400)
#define PTE_TRANSITION ((MMPTE)0x800)
#define MM_EXECUTE_READ 3
#define TRANSITION_PROTECTION ((MMPTE)MM_EXECUTE_READ << 5)
#define PAGES_MAXIMUM 16

typedef struct {
    ULONG_PTR Address;
    ULONG64 Frame;
} PAGEABLE_PAGE;

static PAGEABLE_PAGE MiPages[PAGES_MAXIMUM];
static ULONG MiPageCount;
static volatile MMPTE *MiPrototypes; // one for each page, in the pool
static KSPIN_LOCK MiPagingLock;
volatile ULONG64 MmPagesIn;

// The sections whose names begin with PAGE.
void MiInitializePaging(void)
{
    ULONG_PTR Base = MiBootBlock->kernelVirtualBase;
    const PE_HEADERS *Headers = PeHeaders((PVOID)Base);
    const PE_SECTION *Section = PeSections(Headers);

    for (ULONG i = 0; i < Headers->sectionCount; i++, Section++) {
        if (memcmp(Section->name, "PAGE", 4))
            continue;
        for (ULONG At = 0; At < Section->virtualSize && MiPageCount < PAGES_MAXIMUM; At += PAGE_SIZE) {
            ULONG_PTR Address = Base + Section->virtualAddress + At;
            MiPages[MiPageCount++] =
                (PAGEABLE_PAGE){Address, MmGetPhysicalAddress(MiSystemRoot(), Address)};
        }
    }
    MiPrototypes = ExAllocatePoolWithTag(NonPagedPoolNx, MiPageCount * sizeof *MiPrototypes, 'tSmM');
    if (!MiPrototypes)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 13, 0, 0, 0);
}

// Below DISPATCH_LEVEL. Whoever runs in one of the pages finds it gone at the
// next instruction, and has it back by the page fault.
ULONG MmTrimPageableCode(MM_TRIM_KIND Kind)
{
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&MiPagingLock);
    for (ULONG i = 0; i < MiPageCount; i++) {
        MMPTE InTransition = (MMPTE)MiPages[i].Frame | PTE_TRANSITION | TRANSITION_PROTECTION;
        MMPTE Entry = InTransition;
        if (Kind != MmTrimToTransition) {
            MiPrototypes[i] = Kind == MmTrimToSharedPage ? (MMPTE)MiPages[i].Frame | PTE_PRESENT : InTransition;
            Entry = MM_PROTOTYPE_ENTRY(&MiPrototypes[i]) | PTE_PROTOTYPE |
                    MM_PROTOTYPE_PROTECTION(MM_EXECUTE_READ);
        }
        volatile MMPTE *Pte = MmFindPte(MiSystemRoot(), MiPages[i].Address, FALSE);
        MiWritePte(Pte, Entry);
    }
    KeFlushEntireTb();
    KeReleaseSpinLock(&MiPagingLock, Irql);
    return MiPageCount;
}

// NULL where a page is never taken away.
static PAGEABLE_PAGE *MiPageablePage(ULONG_PTR Address)
{
    for (ULONG i = 0; i < MiPageCount; i++) {
        if (MiPages[i].Address == PAGE_OF(Address))
            return &MiPages[i];
    }
    return NULL;
}

// The page-fault handler's: TRUE if the access may be tried again. Interrupts
// are on, since the lock's holder may be waiting for this processor's answer.
BOOLEAN MmAccessFault(ULONG_PTR Address)
{
    BOOLEAN Resolved = TRUE;

    if (!MiPageablePage(Address))
        return FALSE;
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&MiPagingLock);
    volatile MMPTE *Pte = MmFindPte(MiSystemRoot(), Address, FALSE);
    MMPTE Entry = *Pte;
    if (!(Entry & PTE_PRESENT)) { // else another processor was faster
        if (Entry & PTE_PROTOTYPE)
            Entry = *MM_PROTOTYPE_ADDRESS(Entry);
        if (Entry & (PTE_PRESENT | PTE_TRANSITION)) {
            MiWritePte(Pte, (Entry & PTE_FRAME) | PTE_PRESENT);
            MmPagesIn++;
        } else {
            Resolved = FALSE;
        }
    }
    KeReleaseSpinLock(&MiPagingLock, Irql);
    return Resolved;
}

// Below DISPATCH_LEVEL: a page of the kernel's image that nobody writes gets
// another frame, in `New`, with the same contents. The frame that it was in, or 0
// where it cannot be moved, which a try later may do.
ULONG64 MmMoveConstantPage(ULONG_PTR Address, ULONG64 *New)
{
    ULONG64 Old = 0;

    if (!(*New = MmAllocateFrame()))
        return 0;
    (void)*(volatile UCHAR *)Address; // brings in what is pageable
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&MiPagingLock);
    volatile MMPTE *Pte = MmFindPte(MiSystemRoot(), Address, FALSE);
    if (Pte && (*Pte & (PTE_PRESENT | PTE_WRITE)) == PTE_PRESENT) {
        RtlCopyMemory(MmPhysicalToVirtual(*New), (PVOID)PAGE_OF(Address), PAGE_SIZE);
        Old = MiChangePte(Pte, PTE_FRAME, (MMPTE)*New) & PTE_FRAME;
        PAGEABLE_PAGE *Pageable = MiPageablePage(Address);
        if (Pageable)
            Pageable->Frame = *New;
        KeFlushSingleTb(Address);
    }
    KeReleaseSpinLock(&MiPagingLock, Irql);
    // The frames that the loader placed the image in are nobody's afterwards.
    if (!Old)
        MmFreeFrame(*New);
    else if (Old - MiBootBlock->kernelPhysicalBase >= LARGE_PAGE_SIZE)
        MmFreeFrame(Old);
    return Old;
}
