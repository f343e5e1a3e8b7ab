// Whether the kernel's code is as it was at boot: every executable section
// that stays, and what follows it in its last page, byte by byte.

#include "../include/console.h"
#include "../include/mm.h"
#include "../include/rtl.h"
#include "../../common/pe.h"

#define SECTIONS_MAXIMUM 8

typedef struct {
    CHAR Name[9];
    const UCHAR *Base;
    SIZE_T Size; // whole pages
    PUCHAR Copy;
} CODE_RECORD;

static CODE_RECORD ConCode[SECTIONS_MAXIMUM];
static ULONG ConCodeCount;

void ConRecordCode(void)
{
    ULONG_PTR Base = MiBootBlock->kernelVirtualBase;
    const PE_HEADERS *Headers = PeHeaders((PVOID)Base);
    const PE_SECTION *Section = PeSections(Headers);

    for (ULONG i = 0; i < Headers->sectionCount; i++, Section++) {
        if (!(Section->characteristics & PE_SECTION_EXECUTE) ||
            (Section->characteristics & PE_SECTION_DISCARDABLE) || ConCodeCount == SECTIONS_MAXIMUM)
            continue;
        CODE_RECORD *Record = &ConCode[ConCodeCount++];
        RtlCopyMemory(Record->Name, Section->name, 8);
        Record->Base = (const UCHAR *)Base + Section->virtualAddress;
        Record->Size = PAGE_ALIGN_UP(Section->virtualSize);
        Record->Copy = ExAllocatePoolWithTag(NonPagedPoolNx, Record->Size, 'kcCK');
        if (!Record->Copy)
            KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 10, Record->Size, 0, 0);
        RtlCopyMemory(Record->Copy, Record->Base, Record->Size);
    }
}

BOOLEAN ConIsConstant(ULONG_PTR Address)
{
    ULONG_PTR Base = MiBootBlock->kernelVirtualBase;
    const PE_HEADERS *Headers = PeHeaders((PVOID)Base);
    const PE_SECTION *Section = PeSections(Headers);
    for (ULONG i = 0; i < Headers->sectionCount; i++, Section++) {
        if (Address - Base - Section->virtualAddress < Section->virtualSize)
            return !(Section->characteristics & (PE_SECTION_WRITE | PE_SECTION_DISCARDABLE));
    }
    return FALSE;
}

// The section that differs, and where; NULL: none does.
static const CODE_RECORD *ConFindDifference(SIZE_T *At)
{
    for (ULONG i = 0; i < ConCodeCount; i++) {
        const CODE_RECORD *Record = &ConCode[i];
        for (*At = 0; *At < Record->Size; ++*At) {
            if (Record->Base[*At] != Record->Copy[*At])
                return Record;
        }
    }
    return NULL;
}

BOOLEAN ConIsCodeClean(void)
{
    SIZE_T At;
    return !ConFindDifference(&At);
}

void ConCheckCode(CONSOLE_COMMAND *Command)
{
    SIZE_T At, Bytes = 0;
    const CODE_RECORD *Found = ConFindDifference(&At);
    if (Found) {
        ConAnswer(&Command->Tag, "error modified section=%s offset=0x%llx", Found->Name, (ULONG64)At);
        return;
    }
    for (ULONG i = 0; i < ConCodeCount; i++)
        Bytes += ConCode[i].Size;
    ConAnswer(&Command->Tag, "ok clean bytes=%llu", (ULONG64)Bytes);
}
