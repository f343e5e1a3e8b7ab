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

static uint64_t *Descend(uint64_t *table, uint64_t index)
{
    if (!(table[index] & PTE_PRESENT))
        table[index] = (uint64_t)AllocatePages(1, PAGE_SIZE) | PTE_PRESENT | PTE_WRITE;
    return (uint64_t *)(table[index] & 0x000FFFFFFFFFF000ull);
}

void MapPage(uint64_t *root, uint64_t address, uint64_t entry)
{
    uint64_t *table = Descend(root, address >> 39 & 511);
    table = Descend(table, address >> 30 & 511);
    table = Descend(table, address >> 21 & 511);
    table[address >> 12 & 511] = entry;
}

// Maps [0, block->directMapSize) at BOOT_DIRECT_MAP_BASE, except for the large
// page at physical address `excluded`.
void MapDirect(uint64_t *root, const BOOT_BLOCK *block, uint64_t excluded)
{
    for (uint64_t address = 0; address < block->directMapSize;
         address += LARGE_PAGE_SIZE) {
        if (address == excluded)
            continue;
        uint64_t at = BOOT_DIRECT_MAP_BASE + address;
        uint64_t *table = Descend(root, at >> 39 & 511);
        table = Descend(table, at >> 30 & 511);
        table[at >> 21 & 511] =
            address | PTE_PRESENT | PTE_WRITE | PTE_LARGE | PTE_NX;
    }
}
