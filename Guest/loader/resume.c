// Coming back from hibernation: where the disk holds an image, memory is read
// from it, over this very loader, and the kernel that wrote it goes on.

#include "loader.h"

#include "../common/ata.h"
#include "../common/hibernation.h"

// Below 1 MiB, where the image does not reach: page tables that map the first
// GiB to itself, the code that reads, its arguments, its stack.
#define LOW_CODE 0x20000ull
#define LOW_TABLES 0x21000ull
#define LOW_HEADER 0x24000ull
#define LOW_STACK_TOP 0x26000ull

#define RESUME_CODE __attribute__((section(".resume"), noinline))

extern uint8_t LoaderResumeStart[], LoaderResumeEnd[];
_Noreturn void EnterResume(uint64_t root, uint64_t stack, uint64_t code, const void *argument);

// Moved to LOW_CODE before it runs, with Enter32: it calls nothing else, and has no data. The
// header on the disk is gone by now; an image that turns out damaged is followed
// by a reset, and that by a fresh boot.
RESUME_CODE void ReadImage(const HIBERNATION_HEADER *header)
{
    uint64_t hash = HIBERNATION_HASH_BEGIN;
    uint32_t sector = 1;

    for (uint64_t at = 0; at < header->size; at += HIBERNATION_CHUNK) {
        void *to = (void *)(HIBERNATION_START + at);
        if (!AtaRead(sector, to, HIBERNATION_CHUNK / ATA_SECTOR))
            break;
        hash = HibernationHash(hash, to, HIBERNATION_CHUNK);
        sector += HIBERNATION_CHUNK / ATA_SECTOR;
    }
    while (hash != header->hash)
        AtaOut(0xCF9, 6);
    if (header->paging != HIBERNATION_PAGING_LONG)
        Enter32(header->root, header->entry, header->stack, header->argument, header->paging);
    __asm__ volatile(
        "movq %0, %%cr3\n\t"
        "movq %1, %%rsp\n\t"
        "subq $0x28, %%rsp\n\t"
        "jmpq *%2"
        : : "r"(header->root), "r"(header->stack), "r"(header->entry), "c"(header->argument)
        : "memory");
    __builtin_unreachable();
}

static int IsUsable(const HIBERNATION_HEADER *header, const BOOT_BLOCK *block)
{
    return header->magic == HIBERNATION_MAGIC && header->directMapSize == block->directMapSize &&
           header->size % HIBERNATION_CHUNK == 0 &&
           HIBERNATION_START + header->size <= block->directMapSize &&
           HIBERNATION_START + header->size <= 0x40000000;
}

// Returns where there is nothing to come back to.
void ResumeFromDisk(const BOOT_BLOCK *block)
{
    static uint8_t sector[ATA_SECTOR], empty[ATA_SECTOR];
    const HIBERNATION_HEADER *header = (const void *)sector;

    if (!AtaSectors((uint16_t *)sector) || !AtaRead(0, sector, 1) || !IsUsable(header, block))
        return;
    // An image is good for one resume: memory goes on from there.
    if (!AtaWrite(0, empty, 1) || !AtaFlush())
        return;

    uint64_t *root = (void *)LOW_TABLES, *pointers = root + 512, *directory = root + 1024;
    memset(root, 0, 3 * PAGE_SIZE);
    root[0] = (uint64_t)pointers | PTE_PRESENT | PTE_WRITE;
    pointers[0] = (uint64_t)directory | PTE_PRESENT | PTE_WRITE;
    for (uint64_t i = 0; i < 512; i++)
        directory[i] = i * LARGE_PAGE_SIZE | PTE_PRESENT | PTE_WRITE | PTE_LARGE;
    memcpy((void *)LOW_HEADER, sector, ATA_SECTOR);
    memcpy((void *)LOW_CODE, LoaderResumeStart, (size_t)(LoaderResumeEnd - LoaderResumeStart));
    EnterResume((uint64_t)root, LOW_STACK_TOP,
                LOW_CODE + (uint64_t)((uint8_t *)ReadImage - LoaderResumeStart),
                (const void *)LOW_HEADER);
}
