// Places the kernel's image: sections at their addresses, relocations applied,
// each page mapped with its section's own rights.

#include "loader.h"

static const PE_HEADERS *KernelHeaders(const BOOT_MODULE *file)
{
    const PE_HEADERS *headers = PeHeaders((const void *)file->base);
    if (!headers)
        Fail("the first module is not a PE image for x86-64 or x86");
    return headers;
}

static const void *FileAt(const BOOT_MODULE *file, uint32_t address)
{
    const PE_HEADERS *headers = KernelHeaders(file);
    const PE_SECTION *section = PeSections(headers);
    for (unsigned i = 0; i < headers->sectionCount; i++, section++) {
        if (address - section->virtualAddress < section->rawSize)
            return (const void *)(file->base + section->rawOffset + address - section->virtualAddress);
    }
    Fail("an address lies outside the kernel's file");
}

// As on Windows, a kernel of 32 bits that calls itself ntkrnlpa.exe is the one for
// physical address extension.
const PAGING *KernelPaging(const BOOT_MODULE *file)
{
    static const char paeName[] = "ntkrnlpa.exe";
    const PE_HEADERS *headers = KernelHeaders(file);
    if (PeIs64(headers))
        return &LongPaging;
    const PE_EXPORTS *exports = FileAt(file, PeDirectory(headers, PE_DIRECTORY_EXPORT).address);
    const char *name = FileAt(file, exports->name);
    for (unsigned i = 0; i < sizeof paeName; i++) {
        if (name[i] != paeName[i])
            return &PlainPaging;
    }
    return &PaePaging;
}

uint64_t KernelImageSize(const BOOT_MODULE *file)
{
    return (KernelHeaders(file)->imageSize + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
}

static void Relocate(uint8_t *image, const PE_HEADERS *headers, uint64_t delta)
{
    PE_DIRECTORY directory = PeDirectory(headers, PE_DIRECTORY_RELOCATION);
    uint8_t *block = image + directory.address;
    uint8_t *end = block + directory.size;

    while (block + 8 <= end) {
        uint32_t page = *(uint32_t *)block;
        uint32_t size = *(uint32_t *)(block + 4);
        if (size < 8 || size > (uint64_t)(end - block))
            Fail("bad relocation block");
        for (uint32_t at = 8; at < size; at += 2) {
            uint16_t entry = *(uint16_t *)(block + at);
            if (entry >> 12 == PE_RELOCATION_DIR64)
                *(uint64_t *)(image + page + (entry & 0xFFF)) += delta;
            else if (entry >> 12 == PE_RELOCATION_HIGHLOW)
                *(uint32_t *)(image + page + (entry & 0xFFF)) += (uint32_t)delta;
            else if (entry >> 12 != PE_RELOCATION_ABSOLUTE)
                Fail("unknown relocation");
        }
        block += size;
    }
}

static void MapRange(const PAGING *paging, void *root, uint64_t address, void *frames,
                     uint64_t size, uint64_t rights)
{
    for (uint64_t at = 0; at < size; at += PAGE_SIZE)
        MapPage(paging, root, address + at, ((uint64_t)frames + at) | rights);
}

void LoadKernel(const PAGING *paging, void *root, const BOOT_MODULE *file, BOOT_BLOCK *block,
                void *frames)
{
    const uint8_t *raw = (const uint8_t *)file->base;
    const PE_HEADERS *headers = PeHeaders(raw);
    const PE_SECTION *section = PeSections(headers);
    uint64_t base = block->kernelVirtualBase;
    uint8_t *image = frames;

    memcpy(image, raw, headers->headersSize);
    MapRange(paging, root, base, image, headers->headersSize, PTE_PRESENT | PTE_NX);

    for (unsigned i = 0; i < headers->sectionCount; i++, section++) {
        // The linker pads a code section's raw data with int 3 up to the file
        // alignment. Only what belongs to the section is copied, so that the
        // rest of its last page is zero, as it is on Windows.
        uint32_t size = section->rawSize < section->virtualSize
                            ? section->rawSize
                            : section->virtualSize;
        if (section->rawOffset + (uint64_t)size > file->size)
            Fail("a section lies outside the kernel's file");
        memcpy(image + section->virtualAddress, raw + section->rawOffset, size);

        uint64_t rights = PTE_PRESENT;
        if (section->characteristics & PE_SECTION_WRITE)
            rights |= PTE_WRITE;
        if (!(section->characteristics & PE_SECTION_EXECUTE))
            rights |= PTE_NX;
        MapRange(paging, root, base + section->virtualAddress,
                 image + section->virtualAddress, section->virtualSize, rights);
    }
    Relocate(image, headers, base - PeImageBase(headers));
    // The header in memory says where the image is, as Windows' loader leaves it.
    PeSetImageBase((PE_HEADERS *)PeHeaders(image), base);
}
