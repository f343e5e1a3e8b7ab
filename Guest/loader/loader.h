// What the loader's parts offer one another.

#ifndef VIGIL_LOADER_H
#define VIGIL_LOADER_H

#include <stddef.h>
#include <stdint.h>

#include "../common/bootblock.h"
#include "../common/pe.h"

// Page-table entry bits: Intel SDM volume 3A, section 4.5.4.
#define PTE_PRESENT 1ull
#define PTE_WRITE 2ull
#define PTE_LARGE 0x80ull
#define PTE_NX (1ull << 63)

#define PAGE_SIZE 4096ull
#define LARGE_PAGE_SIZE 0x200000ull

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
void MapPage(uint64_t *root, uint64_t address, uint64_t entry);
void MapDirect(uint64_t *root, const BOOT_BLOCK *block, uint64_t excluded);

// image.c
void LoadKernel(uint64_t *root, const BOOT_MODULE *file, BOOT_BLOCK *block,
                void *frames);
uint64_t KernelImageSize(const BOOT_MODULE *file);

// resume.c
void ResumeFromDisk(const BOOT_BLOCK *block);

// entry.S
extern uint64_t LoaderPointers[];
extern char LoaderEnd[];
_Noreturn void EnterKernel(uint64_t root, uint64_t entry,
                           const BOOT_BLOCK *block);

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
