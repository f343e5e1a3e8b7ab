// All writes of page-table entries: a plain store where no processor can use the
// entry, or all that do are told afterwards; an exchange where what was there
// matters; a compare-exchange where a processor may set the accessed and dirty
// bits meanwhile.

#include "../include/mm.h"

void MiWritePte(volatile MMPTE *Pte, MMPTE Entry)
{
    MiStorePte(Pte, Entry);
}

// The entry that was there.
MMPTE MiExchangePte(volatile MMPTE *Pte, MMPTE Entry)
{
    return __atomic_exchange_n(Pte, Entry, __ATOMIC_SEQ_CST);
}

// Sets the bits in `Mask` to those of `Entry`, and returns the entry that was there.
MMPTE MiChangePte(volatile MMPTE *Pte, MMPTE Mask, MMPTE Entry)
{
    MMPTE Old = *Pte;
    while (!__atomic_compare_exchange_n(Pte, &Old, (Old & ~Mask) | (Entry & Mask), FALSE,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
    return Old;
}
