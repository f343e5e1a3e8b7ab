// Mapping a PE image into a process: laid out and relocated in a buffer, its
// imports from ntdll resolved, then copied page by page, each with its
// section's rights. On Windows the last step but one is ntdll's own.

#include "../include/mm.h"
#include "../include/ps.h"
#include "../include/rtl.h"
#include "../../common/pe.h"

#define IMAGE_TAG 'gmIM'

// Where a byte of the mapped image lies in the file; NULL: nowhere.
static const void *MiFileAt(const void *File, SIZE_T FileSize, ULONG Address)
{
    const PE_HEADERS *Headers = PeHeaders(File);
    const PE_SECTION *Section = PeSections(Headers);
    for (ULONG i = 0; i < Headers->sectionCount; i++, Section++) {
        ULONG Offset = Address - Section->virtualAddress;
        if (Address >= Section->virtualAddress && Offset < Section->rawSize &&
            Section->rawOffset + (SIZE_T)Offset < FileSize)
            return (const UCHAR *)File + Section->rawOffset + Offset;
    }
    return NULL;
}

// Offset of an exported function from its image's base; 0: not exported.
ULONG MiFindFileExport(const void *File, SIZE_T FileSize, const CHAR *Name)
{
    const PE_HEADERS *Headers = PeHeaders(File);
    const PE_EXPORTS *Exports =
        MiFileAt(File, FileSize, PeDirectory(Headers, PE_DIRECTORY_EXPORT).address);
    if (!Exports)
        return 0;
    const ULONG *Names = MiFileAt(File, FileSize, Exports->names);
    const USHORT *Ordinals = MiFileAt(File, FileSize, Exports->ordinals);
    const ULONG *Functions = MiFileAt(File, FileSize, Exports->functions);
    for (ULONG i = 0; Names && Ordinals && Functions && i < Exports->nameCount; i++) {
        const CHAR *Candidate = MiFileAt(File, FileSize, Names[i]);
        if (Candidate && RtlStringEqual(Candidate, Name) && Ordinals[i] < Exports->functionCount)
            return Functions[Ordinals[i]];
    }
    return 0;
}

static void MiLayOut(PUCHAR Image, const void *File, const PE_HEADERS *Headers)
{
    const PE_SECTION *Section = PeSections(Headers);
    RtlCopyMemory(Image, File, Headers->headersSize);
    for (ULONG i = 0; i < Headers->sectionCount; i++, Section++) {
        ULONG Size = Section->rawSize < Section->virtualSize ? Section->rawSize
                                                             : Section->virtualSize;
        RtlCopyMemory(Image + Section->virtualAddress,
                      (const UCHAR *)File + Section->rawOffset, Size);
    }
}

static void MiRelocate(PUCHAR Image, const PE_HEADERS *Headers, ULONG_PTR Delta)
{
    PE_DIRECTORY Directory = PeDirectory(Headers, PE_DIRECTORY_RELOCATION);
    PUCHAR Block = Image + Directory.address, End = Block + Directory.size;

    while (Directory.address && Block + 8 <= End) {
        ULONG Page = *(ULONG *)Block, Size = *(ULONG *)(Block + 4);
        if (Size < 8)
            break;
        for (ULONG At = 8; At < Size; At += 2) {
            USHORT Entry = *(USHORT *)(Block + At);
            if (Entry >> 12 == PE_RELOCATION_NATIVE)
                *(ULONG_PTR *)(Image + Page + (Entry & 0xFFF)) += Delta;
        }
        Block += Size;
    }
}

// Everything the bundled program imports is ntdll's.
static NTSTATUS MiResolveImports(PUCHAR Image, const PE_HEADERS *Headers)
{
    ULONG Address = PeDirectory(Headers, PE_DIRECTORY_IMPORT).address;
    const void *Ntdll = MmPhysicalToVirtual(MiBootBlock->modules[1].base);
    SIZE_T NtdllSize = (SIZE_T)MiBootBlock->modules[1].size;

    if (!Address)
        return STATUS_SUCCESS;
    for (PE_IMPORT *Import = (PE_IMPORT *)(Image + Address); Import->name; Import++) {
        ULONG_PTR *Slot = (ULONG_PTR *)(Image + Import->addressTable);
        for (; *Slot; Slot++) {
            // A hint of two bytes, then the name.
            ULONG Offset = MiFindFileExport(Ntdll, NtdllSize, (const CHAR *)Image + *Slot + 2);
            if (!Offset)
                return STATUS_INVALID_IMAGE_FORMAT;
            *Slot = PspUserLayout.NtdllBase + Offset;
        }
    }
    return STATUS_SUCCESS;
}

static void MiMapRange(ULONG_PTR Root, ULONG_PTR Base, PUCHAR Image, ULONG Address, SIZE_T Size,
                       MMPTE Rights)
{
    MmAllocateUserPages(Root, Base + Address, Size, Rights);
    MmCopyToSpace(Root, Base + Address, Image + Address, Size);
}

NTSTATUS MiMapUserImage(ULONG_PTR Root, const void *File, SIZE_T FileSize, ULONG_PTR Base)
{
    const PE_HEADERS *Headers = PeHeaders(File);
    (void)FileSize;
    if (!Headers)
        return STATUS_INVALID_IMAGE_FORMAT;
    PUCHAR Image = ExAllocatePoolWithTag(PagedPool, Headers->imageSize, IMAGE_TAG);
    if (!Image)
        return STATUS_NO_MEMORY;

    MiLayOut(Image, File, Headers);
    MiRelocate(Image, Headers, Base - (ULONG_PTR)PeImageBase(Headers));
    PeSetImageBase((PE_HEADERS *)PeHeaders(Image), Base);
    NTSTATUS Status = MiResolveImports(Image, Headers);
    if (NT_SUCCESS(Status)) {
        const PE_SECTION *Section = PeSections(Headers);
        MiMapRange(Root, Base, Image, 0, Headers->headersSize, MM_USER_R);
        for (ULONG i = 0; i < Headers->sectionCount; i++, Section++) {
            ULONG Rights = Section->characteristics;
            MiMapRange(Root, Base, Image, Section->virtualAddress, Section->virtualSize,
                       Rights & PE_SECTION_EXECUTE ? MM_USER_RX
                       : Rights & PE_SECTION_WRITE ? MM_USER_RW
                                                   : MM_USER_R);
        }
    }
    ExFreePoolWithTag(Image, IMAGE_TAG);
    return Status;
}
