// What the loader's parts offer one another.

#ifndef VIGIL_LOADER_H
#define VIGIL_LOADER_H

#include <stddef.h>
#include <stdint.h>

#include "../common/bootblock.h"
#include "../common/hibernation.h"
#include "../common/pe.h"

// Page-table entry bits: Intel SDM volume 3A, sections 4.3 to 4.5.
#define PTE_PRESENT 1ull
#define PTE_WRITE 2ull
#define PTE_CACHE_DISABLE 0x10ull
#define LARGE_PAGE_SIZE 0x200000ull // of the loader's own tables
#define PTE_LARGE 0x80ull
#define PTE_NX (1ull << 63)

#define PAGE_SIZE 4096ull

// The page tables that a kernel runs with. The loader itself is in long mode
// throughout, and leaves it for a kernel of 32 bits with its last steps.
typedef struct {
    unsigned topShift, levelBits, entrySize;
    uint64_t topRights; // of an entry of the first level
    uint64_t largePage;
    uint64_t directMap;
    int canForbidExecution;
    uint32_t paging; // HIBERNATION_PAGING_…
} PAGING;
extern const PAGING LongPaging, PaePaging, PlainPaging;

// serial.c
void SerialInitialize(void);
void SerialPrint(const char *text);
_Noreturn void Fail(const char *reason);

// random.c
uint64_t Random64(void);

// memory.c
void *memset(void *to, int value, size_t size);
void *memcpy(void *to, const void *from, size_t size);
void MemoryInitialize(uint64_t firstFree);
uint64_t MemoryTop(void);
void *AllocatePages(uint64_t count, uint64_t alignment);
void MapPage(const PAGING *paging, void *root, uint64_t address, uint64_t entry);
void MapLargePage(const PAGING *paging, void *root, uint64_t address, uint64_t entry);
void MapDirect(const PAGING *paging, void *root, const BOOT_BLOCK *block, uint64_t excluded);
uint64_t PageTableAt(const PAGING *paging, void *root, uint64_t address); // of the last level

// image.c
const PAGING *KernelPaging(const BOOT_MODULE *file);
uint64_t KernelImageSize(const BOOT_MODULE *file);
void LoadKernel(const PAGING *paging, void *root, const BOOT_MODULE *file, BOOT_BLOCK *block,
                void *frames);

// resume.c
void ResumeFromDisk(const BOOT_BLOCK *block);

// entry.S
extern uint64_t LoaderPointers[];
extern char LoaderEnd[], LoaderStackTop[];
_Noreturn void EnterKernel(uint64_t root, uint64_t entry, uint64_t block);
// Out of long mode; `paging` is one of HIBERNATION_PAGING_….
_Noreturn void Enter32(uint64_t root, uint64_t entry, uint64_t stack, uint64_t argument,
                       uint64_t paging);

static inline void Out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t In8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

#endif
