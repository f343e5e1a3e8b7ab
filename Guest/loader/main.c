// The loader's course: read what the firmware left, choose where the kernel
// lives on this boot, place it, jump.

#include "loader.h"

// Multiboot Specification 0.6.96, section 3.3.
typedef struct {
    uint32_t flags;
    uint32_t lowerMemory, upperMemory;
    uint32_t bootDevice;
    uint32_t commandLine;
    uint32_t moduleCount, modules;
    uint32_t symbols[4];
    uint32_t mapLength, map;
} MULTIBOOT_INFORMATION;

typedef struct {
    uint32_t start, end, string, reserved;
} MULTIBOOT_MODULE;

typedef struct {
    uint32_t entrySize; // of what follows
    uint64_t base, length;
    uint32_t kind;
} __attribute__((packed)) MULTIBOOT_RANGE;

#define MULTIBOOT_HAS_MODULES 0x08
#define MULTIBOOT_HAS_MAP 0x40

// Windows 10 loads its kernel on a 2 MiB boundary in the region from here on.
// Which of its 2^17 places: 38 bits of address, less the last page table.
#define KERNEL_REGION 0xFFFFF80000000000ull
#define KERNEL_PLACES 0x20000ull

// Windows 7 for x86 has its own somewhere from here on; on any page. The places
// leave room for the largest image below 0x84000000.
#define KERNEL_REGION_X86 0x82000000ull
#define KERNEL_PLACES_X86 0x1E00ull
#define MAXIMUM_IMAGE 0x200000ull

// Where Windows for x86 has what maps the page tables (mm/i386/mi386.h of the
// Windows Research Kernel), and the HAL the local APIC, whose task priority
// register is the IRQL: the kernel needs it from its first steps on.
#define PAGE_TABLES_X86 0xC0000000ull
#define LOCAL_APIC_X86 0xFFFE0000ull
#define LOCAL_APIC_ADDRESS 0xFEE00000ull

static uint64_t Maximum(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static void ReadModules(const MULTIBOOT_INFORMATION *info, BOOT_BLOCK *block)
{
    if (!(info->flags & MULTIBOOT_HAS_MODULES) || info->moduleCount < 3)
        Fail("needs -initrd \"ntoskrnl.exe,ntdll.dll,app.exe\"");
    const MULTIBOOT_MODULE *modules = (const void *)(uint64_t)info->modules;
    for (uint32_t i = 0; i < info->moduleCount && i < BOOT_MAXIMUM_MODULES; i++) {
        block->modules[i].base = modules[i].start;
        block->modules[i].size = modules[i].end - modules[i].start;
        block->moduleCount++;
    }
}

static void ReadMemoryMap(const MULTIBOOT_INFORMATION *info, const PAGING *paging,
                          BOOT_BLOCK *block)
{
    if (!(info->flags & MULTIBOOT_HAS_MAP))
        Fail("no memory map");
    uint64_t at = info->map, end = at + info->mapLength;
    while (at < end && block->rangeCount < BOOT_MAXIMUM_RANGES) {
        const MULTIBOOT_RANGE *from = (const void *)at;
        BOOT_MEMORY_RANGE *range = &block->ranges[block->rangeCount++];
        range->base = from->base;
        range->size = from->length;
        range->kind = from->kind;
        at += from->entrySize + 4;
        // The direct map must reach the ACPI tables, which the firmware puts
        // into a reserved range at the top of the memory below 4 GiB; not the
        // firmware's own ROM, nor the holes for devices.
        uint64_t top = range->base + range->size;
        if (range->kind == BOOT_MEMORY_USABLE ||
            (top < 0xE0000000 && range->size < 0x1000000))
            block->directMapSize = Maximum(block->directMapSize, top);
    }
    block->directMapSize = (block->directMapSize + paging->largePage - 1) & ~(paging->largePage - 1);
    if (paging != &LongPaging && block->directMapSize > BOOT_DIRECT_MAP_LIMIT_X86)
        Fail("a kernel of 32 bits takes 896 MiB of memory at most");
}

static uint64_t FirstFreeAddress(const MULTIBOOT_INFORMATION *info,
                                 const BOOT_BLOCK *block)
{
    uint64_t end = Maximum((uint64_t)LoaderEnd, (uint64_t)info + PAGE_SIZE);
    end = Maximum(end, info->modules + 4096ull);
    for (uint64_t i = 0; i < block->moduleCount; i++)
        end = Maximum(end, block->modules[i].base + block->modules[i].size);
    return (end + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
}

// A view of the page tables themselves: one entry of a table of the first level but
// for PAE, where it takes four, of the table below it.
static void MapPageTables(const PAGING *paging, void *root, BOOT_BLOCK *block)
{
    if (paging == &LongPaging) {
        // Windows 10 draws the self-map entry at boot, among those of the kernel's
        // half; ours is one that no other region of this kernel uses (mm.h).
        block->selfMapIndex = 0x180 + Random64() % 0x60;
        ((uint64_t *)root)[block->selfMapIndex] = (uint64_t)root | PTE_PRESENT | PTE_WRITE | PTE_NX;
    } else if (paging == &PlainPaging) {
        ((uint32_t *)root)[PAGE_TABLES_X86 >> 22] = (uint32_t)(uint64_t)root | PTE_PRESENT | PTE_WRITE;
    } else {
        uint64_t *pointers = root;
        for (uint64_t i = 0; i < 4; i++)
            PageTableAt(paging, root, i == 3 ? LOCAL_APIC_X86 : i << 30);
        uint64_t *directory = (uint64_t *)(pointers[3] & ~0xFFFull);
        for (uint64_t i = 0; i < 4; i++)
            directory[i] = (pointers[i] & ~0xFFFull) | PTE_PRESENT | PTE_WRITE | PTE_NX;
    }
}

static void *BuildPageTables(const PAGING *paging, BOOT_BLOCK *block, void *frames)
{
    block->pageTablesBase = MemoryTop();
    void *root = AllocatePages(1, PAGE_SIZE);
    block->pageTableRoot = (uint64_t)root;
    MapPageTables(paging, root, block);
    // The loader's own mapping, for the jump: the kernel drops it first thing.
    if (paging == &LongPaging)
        ((uint64_t *)root)[0] = (uint64_t)LoaderPointers | PTE_PRESENT | PTE_WRITE;
    else
        MapLargePage(paging, root, 0, PTE_PRESENT | PTE_WRITE);
    if (paging != &LongPaging)
        MapPage(paging, root, LOCAL_APIC_X86,
                LOCAL_APIC_ADDRESS | PTE_PRESENT | PTE_WRITE | PTE_CACHE_DISABLE | PTE_NX);
    LoadKernel(paging, root, &block->modules[0], block, frames);
    MapDirect(paging, root, block, (uint64_t)frames);
    block->pageTablesEnd = MemoryTop();
    return root;
}

void LoaderMain(const MULTIBOOT_INFORMATION *info)
{
    static BOOT_BLOCK draft;

    SerialInitialize();
    ReadModules(info, &draft);
    const PAGING *paging = KernelPaging(&draft.modules[0]);
    ReadMemoryMap(info, paging, &draft);
    ResumeFromDisk(&draft);
    MemoryInitialize(FirstFreeAddress(info, &draft));

    uint64_t imageSize = KernelImageSize(&draft.modules[0]);
    if (imageSize > MAXIMUM_IMAGE)
        Fail("the kernel's image is larger than 2 MiB");
    void *frames = AllocatePages(paging->largePage / PAGE_SIZE, paging->largePage);

    draft.magic = BOOT_BLOCK_MAGIC;
    draft.serialPort = 0x3F8;
    draft.kernelImageSize = imageSize;
    draft.kernelPhysicalBase = (uint64_t)frames;
    draft.kernelVirtualBase =
        paging == &LongPaging
            ? KERNEL_REGION + (1 + Random64() % (KERNEL_PLACES - 2)) * paging->largePage
            : KERNEL_REGION_X86 + Random64() % KERNEL_PLACES_X86 * PAGE_SIZE;
    draft.randomSeed[0] = Random64();
    draft.randomSeed[1] = Random64();
    void *root = BuildPageTables(paging, &draft, frames);

    BOOT_BLOCK *block = AllocatePages(1, PAGE_SIZE);
    draft.firstFreeAddress = MemoryTop();
    memcpy(block, &draft, sizeof draft);
    _Static_assert(sizeof(BOOT_BLOCK) <= PAGE_SIZE, "the boot block is one page");

    uint64_t entry = draft.kernelVirtualBase +
                     PeHeaders((const void *)draft.modules[0].base)->entryPoint;
    uint64_t argument = paging->directMap + (uint64_t)block;
    if (paging == &LongPaging)
        EnterKernel((uint64_t)root, entry, argument);
    Enter32((uint64_t)root, entry, (uint64_t)LoaderStackTop, argument, paging->paging);
}
