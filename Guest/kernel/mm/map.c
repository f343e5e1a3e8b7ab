// Page tables of as many levels as the architecture has, reached through the direct map.

#include "../include/mm.h"
#include "../include/mp.h"

#define LEVEL_MASK ((1u << MM_LEVEL_BITS) - 1)

static MMPTE *MiTable(MMPTE Entry)
{
    return MmPhysicalToVirtual(Entry & PTE_FRAME);
}

static KSPIN_LOCK MiTableLock; // who adds a table

static MMPTE *MiDescend(ULONG_PTR Root, ULONG_PTR Address, BOOLEAN Create)
{
    MMPTE *Table = MmPhysicalToVirtual(Root);

    for (ULONG Shift = MM_TOP_SHIFT; Shift > PAGE_SHIFT; Shift -= MM_LEVEL_BITS) {
        MMPTE *Entry = &Table[Address >> Shift & LEVEL_MASK];
        if (!(*Entry & PTE_PRESENT)) {
            ULONG64 Frame;
            if (!Create || !(Frame = MmAllocateFrame()))
                return NULL;
            // Rights are the last level's; above, user only in the user half.
            MiWritePte(Entry, (MMPTE)Frame | PTE_PRESENT | PTE_WRITE | (MM_IS_SYSTEM(Address) ? 0 : PTE_USER));
        } else if (*Entry & PTE_LARGE) {
            return NULL;
        }
        Table = MiTable(*Entry);
    }
    return &Table[Address >> PAGE_SHIFT & LEVEL_MASK];
}

MMPTE *MmFindPte(ULONG_PTR Root, ULONG_PTR Address, BOOLEAN Create)
{
    // Tables are added and never taken away: a look needs no lock.
    MMPTE *Pte = MiDescend(Root, Address, FALSE);
    if (Pte || !Create)
        return Pte;
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&MiTableLock);
    Pte = MiDescend(Root, Address, TRUE);
    KeReleaseSpinLock(&MiTableLock, Irql);
    return Pte;
}

// Of an address where nothing was: no processor can hold a translation of it.
void MmMapPage(ULONG_PTR Root, ULONG_PTR Address, MMPTE Entry)
{
    MMPTE *Pte = MmFindPte(Root, Address, TRUE);
    if (!Pte)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 1, Address, (ULONG_PTR)Entry, 0);
    MiWritePte(Pte, Entry);
    KeInvalidatePage(Address);
}

void MmUnmapPage(ULONG_PTR Root, ULONG_PTR Address)
{
    MMPTE *Pte = MmFindPte(Root, Address, FALSE);
    if (Pte && (MiExchangePte(Pte, 0) & PTE_PRESENT))
        KeFlushSingleTb(Address);
}

ULONG64 MmGetPhysicalAddress(ULONG_PTR Root, ULONG_PTR Address)
{
    MMPTE *Pte = MmFindPte(Root, Address, FALSE);
    if (!Pte || !(*Pte & PTE_PRESENT))
        return ~0ull;
    return (*Pte & PTE_FRAME) | (Address & (PAGE_SIZE - 1));
}

// Whether a service may touch memory that a user-mode caller named. Nothing
// takes user pages away, so the answer stays true.
BOOLEAN MmIsUserRangeValid(ULONG_PTR Root, ULONG_PTR Address, SIZE_T Size, BOOLEAN Write)
{
    if (Size == 0)
        return TRUE;
    if (Address + Size < Address || Address + Size > MmUserProbeAddress)
        return FALSE;
    for (ULONG_PTR At = PAGE_OF(Address); At < Address + Size; At += PAGE_SIZE) {
        MMPTE *Pte = MmFindPte(Root, At, FALSE);
        MMPTE Needed = PTE_PRESENT | PTE_USER | (Write ? PTE_WRITE : 0);
        if (!Pte || (*Pte & Needed) != Needed)
            return FALSE;
    }
    return TRUE;
}
