// Page tables, four levels, reached through the direct map.

#include "../include/mm.h"
#include "../include/mp.h"

static ULONG64 *MiTable(ULONG64 Entry)
{
    return MmPhysicalToVirtual(Entry & PTE_FRAME);
}

static KSPIN_LOCK MiTableLock; // who adds a table

static ULONG64 *MiDescend(ULONG64 Root, ULONG64 Address, BOOLEAN Create)
{
    ULONG64 *Table = MiTable(Root);

    for (ULONG Shift = 39; Shift > 12; Shift -= 9) {
        ULONG64 *Entry = &Table[Address >> Shift & 511];
        if (!(*Entry & PTE_PRESENT)) {
            ULONG64 Frame;
            if (!Create || !(Frame = MmAllocateFrame()))
                return NULL;
            // Rights are the last level's; above, user only in the user half.
            MiWritePte(Entry, Frame | PTE_PRESENT | PTE_WRITE | (Address >> 47 ? 0 : PTE_USER));
        } else if (*Entry & PTE_LARGE) {
            return NULL;
        }
        Table = MiTable(*Entry);
    }
    return &Table[Address >> 12 & 511];
}

ULONG64 *MmFindPte(ULONG64 Root, ULONG64 Address, BOOLEAN Create)
{
    // Tables are added and never taken away: a look needs no lock.
    ULONG64 *Pte = MiDescend(Root, Address, FALSE);
    if (Pte || !Create)
        return Pte;
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&MiTableLock);
    Pte = MiDescend(Root, Address, TRUE);
    KeReleaseSpinLock(&MiTableLock, Irql);
    return Pte;
}

// Of an address where nothing was: no processor can hold a translation of it.
void MmMapPage(ULONG64 Root, ULONG64 Address, ULONG64 Entry)
{
    ULONG64 *Pte = MmFindPte(Root, Address, TRUE);
    if (!Pte)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 1, Address, Entry, 0);
    MiWritePte(Pte, Entry);
    KeInvalidatePage(Address);
}

void MmUnmapPage(ULONG64 Root, ULONG64 Address)
{
    ULONG64 *Pte = MmFindPte(Root, Address, FALSE);
    if (Pte && (MiExchangePte(Pte, 0) & PTE_PRESENT))
        KeFlushSingleTb(Address);
}

ULONG64 MmGetPhysicalAddress(ULONG64 Root, ULONG64 Address)
{
    ULONG64 *Pte = MmFindPte(Root, Address, FALSE);
    if (!Pte || !(*Pte & PTE_PRESENT))
        return ~0ull;
    return (*Pte & PTE_FRAME) | (Address & (PAGE_SIZE - 1));
}

// Whether a service may touch memory that a user-mode caller named. Nothing
// takes user pages away, so the answer stays true.
BOOLEAN MmIsUserRangeValid(ULONG64 Root, ULONG64 Address, SIZE_T Size, BOOLEAN Write)
{
    if (Size == 0)
        return TRUE;
    if (Address + Size < Address || Address + Size > MmUserProbeAddress)
        return FALSE;
    for (ULONG64 At = Address & ~(PAGE_SIZE - 1); At < Address + Size; At += PAGE_SIZE) {
        ULONG64 *Pte = MmFindPte(Root, At, FALSE);
        ULONG64 Needed = PTE_PRESENT | PTE_USER | (Write ? PTE_WRITE : 0);
        if (!Pte || (*Pte & Needed) != Needed)
            return FALSE;
    }
    return TRUE;
}
