// Places the kernel's image: sections at their addresses, relocations applied,
// each page mapped with its section's own rights.

#include "loader.h"

uint64_t KernelImageSize(const BOOT_MODULE *file)
{
    const PE_HEADERS *headers = PeHeaders((const void *)file->base);
    if (!headers)
        Fail("the first module is not an x86-64 PE image");
    return (headers->imageSize + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
}

static void Relocate(uint8_t *image, const PE_HEADERS *headers, uint64_t delta)
{
    PE_DIRECTORY directory = headers->directories[PE_DIRECTORY_RELOCATION];
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
            else if (entry >> 12 != PE_RELOCATION_ABSOLUTE)
                Fail("unknown relocation");
        }
        block += size;
    }
}

static void MapRange(uint64_t *root, uint64_t address, void *frames,
                     uint64_t size, uint64_t rights)
{
    for (uint64_t at = 0; at < size; at += PAGE_SIZE)
        MapPage(root, address + at, ((uint64_t)frames + at) | rights);
}

void LoadKernel(uint64_t *root, const BOOT_MODULE *file, BOOT_BLOCK *block,
                void *frames)
{
    const uint8_t *raw = (const uint8_t *)file->base;
    const PE_HEADERS *headers = PeHeaders(raw);
    const PE_SECTION *section = PeSections(headers);
    uint64_t base = block->kernelVirtualBase;
    uint8_t *image = frames;

    memcpy(image, raw, headers->headersSize);
    MapRange(root, base, image, headers->headersSize, PTE_PRESENT | PTE_NX);

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
        MapRange(root, base + section->virtualAddress,
                 image + section->virtualAddress, section->virtualSize, rights);
    }
    Relocate(image, headers, base - headers->imageBase);
    // The header in memory says where the image is, as Windows' loader leaves it.
    ((PE_HEADERS *)PeHeaders(image))->imageBase = base;
}
