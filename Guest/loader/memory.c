// Physical pages, taken upwards and never given back, and the page tables
// built from them.

#include "loader.h"

static uint64_t NextFree;

void *memset(void *to, int value, size_t size)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, size_t size)
{
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
    return start;
}

void MemoryInitialize(uint64_t firstFree)
{
    NextFree = firstFree;
}

uint64_t MemoryTop(void)
{
    return NextFree;
}

void *AllocatePages(uint64_t count, uint64_t alignment)
{
    NextFree = (NextFree + alignment - 1) & ~(alignment - 1);
    void *pages = (void *)NextFree;
    NextFree += count * PAGE_SIZE;
    memset(pages, 0, count * PAGE_SIZE);
    return pages;
}

#define RIGHTS (PTE_PRESENT | PTE_WRITE)

const PAGING LongPaging = {39, 9, 8, RIGHTS, 0x200000, BOOT_DIRECT_MAP_BASE_X64, 1, HIBERNATION_PAGING_LONG};
// The entries of the first level, four of them, have no rights (Intel SDM volume 3A,
// section 4.4.1).
const PAGING PaePaging = {30, 9, 8, PTE_PRESENT, 0x200000, BOOT_DIRECT_MAP_BASE_X86, 1, HIBERNATION_PAGING_PAE};
const PAGING PlainPaging = {22, 10, 4, RIGHTS, 0x400000, BOOT_DIRECT_MAP_BASE_X86, 0, HIBERNATION_PAGING_PLAIN};

static uint64_t ReadEntry(const PAGING *paging, uint64_t table, uint64_t index)
{
    return paging->entrySize == 8 ? ((uint64_t *)table)[index] : ((uint32_t *)table)[index];
}

static void WriteEntry(const PAGING *paging, uint64_t table, uint64_t index, uint64_t entry)
{
    if (paging->entrySize == 8)
        ((uint64_t *)table)[index] = entry;
    else
        ((uint32_t *)table)[index] = (uint32_t)entry;
}

static uint64_t Index(const PAGING *paging, uint64_t address, unsigned shift)
{
    return address >> shift & ((1ull << paging->levelBits) - 1);
}

// The table whose entries stand for pages of 1 << `last` bytes; made if it is not there.
static uint64_t Descend(const PAGING *paging, void *root, uint64_t address, unsigned last)
{
    uint64_t table = (uint64_t)root;
    for (unsigned shift = paging->topShift; shift > last; shift -= paging->levelBits) {
        uint64_t index = Index(paging, address, shift);
        if (!(ReadEntry(paging, table, index) & PTE_PRESENT)) {
            uint64_t rights = shift == paging->topShift ? paging->topRights : RIGHTS;
            WriteEntry(paging, table, index, (uint64_t)AllocatePages(1, PAGE_SIZE) | rights);
        }
        table = ReadEntry(paging, table, index) & 0x000FFFFFFFFFF000ull;
    }
    return table;
}

static unsigned LargeShift(const PAGING *paging)
{
    return 12 + paging->levelBits;
}

uint64_t PageTableAt(const PAGING *paging, void *root, uint64_t address)
{
    return Descend(paging, root, address, 12);
}

static uint64_t Allowed(const PAGING *paging, uint64_t entry)
{
    return paging->canForbidExecution ? entry : entry & ~PTE_NX;
}

void MapPage(const PAGING *paging, void *root, uint64_t address, uint64_t entry)
{
    uint64_t table = PageTableAt(paging, root, address);
    WriteEntry(paging, table, Index(paging, address, 12), Allowed(paging, entry));
}

void MapLargePage(const PAGING *paging, void *root, uint64_t address, uint64_t entry)
{
    uint64_t table = Descend(paging, root, address, LargeShift(paging));
    WriteEntry(paging, table, Index(paging, address, LargeShift(paging)),
               Allowed(paging, entry) | PTE_LARGE);
}

// Maps [0, block->directMapSize) where the kernel has it, except for the large
// page at physical address `excluded`.
void MapDirect(const PAGING *paging, void *root, const BOOT_BLOCK *block, uint64_t excluded)
{
    for (uint64_t address = 0; address < block->directMapSize; address += paging->largePage) {
        if (address != excluded)
            MapLargePage(paging, root, paging->directMap + address, address | RIGHTS | PTE_NX);
    }
}
