// After boot the discardable sections go, INIT and the relocations among them:
// their addresses are no longer mapped.

#include "../include/mm.h"
#include "../include/mp.h"
#include "../../common/pe.h"

void MiFreeInitializationCode(void)
{
    ULONG_PTR Base = MiBootBlock->kernelVirtualBase;
    const PE_HEADERS *Headers = PeHeaders((PVOID)Base);
    const PE_SECTION *Section = PeSections(Headers);

    // A call that every processor answers: none is still on its way through the
    // code of INIT to its idle loop, where interrupts are on at last.
    KeFlushEntireTb();
    for (ULONG i = 0; i < Headers->sectionCount; i++, Section++) {
        if (!(Section->characteristics & PE_SECTION_DISCARDABLE))
            continue;
        for (ULONG At = 0; At < Section->virtualSize; At += PAGE_SIZE) {
            ULONG_PTR Address = Base + Section->virtualAddress + At;
            MMPTE *Pte = MmFindPte(MiSystemRoot(), Address, FALSE);
            if (Pte)
                MiWritePte(Pte, 0);
        }
    }
    KeFlushEntireTb();
}
