// What the loader hands to the kernel: the one contract between the two.
// Every address in it is physical unless its name says otherwise.

#ifndef VIGIL_BOOTBLOCK_H
#define VIGIL_BOOTBLOCK_H

#include <stdint.h>

#define BOOT_BLOCK_MAGIC 0x544F4F424C494756ull // "VGILBOOT"

#define BOOT_MAXIMUM_MODULES 4
#define BOOT_MAXIMUM_RANGES 64

// All of RAM, writable and never executable, from here on (large pages). The
// large page that holds the kernel's image are left out: nothing aliases its code.
#define BOOT_DIRECT_MAP_BASE_X64 0xFFFF900000000000ull
#define BOOT_DIRECT_MAP_BASE_X86 0x88000000ull
#define BOOT_DIRECT_MAP_LIMIT_X86 0x38000000ull // 896 MiB, up to the page tables

// Kinds of memory, as INT 15h E820h numbers them (ACPI 6.4, table 15-374).
#define BOOT_MEMORY_USABLE 1
#define BOOT_MEMORY_RESERVED 2
#define BOOT_MEMORY_ACPI_RECLAIMABLE 3
#define BOOT_MEMORY_ACPI_NVS 4

typedef struct {
    uint64_t base;
    uint64_t size;
} BOOT_MODULE;

typedef struct {
    uint64_t base;
    uint64_t size;
    uint64_t kind;
} BOOT_MEMORY_RANGE;

typedef struct {
    uint64_t magic;
    uint64_t kernelVirtualBase;
    uint64_t kernelImageSize;
    uint64_t kernelPhysicalBase;
    uint64_t pageTableRoot;     // the value of CR3
    uint64_t pageTablesBase;    // where the page tables lie…
    uint64_t pageTablesEnd;     // …and the first byte after them
    uint64_t selfMapIndex;      // x64: the PML4 entry that maps the page tables
    uint64_t directMapSize;
    uint64_t firstFreeAddress;  // usable memory below it is taken
    uint64_t randomSeed[2];     // drawn at this boot, fit to seed a generator
    uint64_t serialPort;        // I/O port of the console
    uint64_t moduleCount;       // in the order of -initrd: kernel, ntdll, program
    BOOT_MODULE modules[BOOT_MAXIMUM_MODULES];
    uint64_t rangeCount;
    BOOT_MEMORY_RANGE ranges[BOOT_MAXIMUM_RANGES];
} BOOT_BLOCK;

#endif
