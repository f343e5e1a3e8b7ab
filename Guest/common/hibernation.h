// The hibernation image: a header in the disk's first sector, and from the one
// after it on all the memory that the guest has in use, as it lies.

#ifndef VIGIL_HIBERNATION_H
#define VIGIL_HIBERNATION_H

#include <stdint.h>

#define HIBERNATION_MAGIC 0x31524249484C4756ull // "VGLHIBR1"
#define HIBERNATION_START 0x100000ull           // below is nothing to keep
#define HIBERNATION_CHUNK 0x10000ull            // what the size is a multiple of

#define HIBERNATION_PAGING_LONG 0
#define HIBERNATION_PAGING_PAE 1
#define HIBERNATION_PAGING_PLAIN 2 // two levels

typedef struct {
    uint64_t magic;
    uint64_t paging;        // how the kernel's page tables are to be read
    uint64_t size;          // of the memory from HIBERNATION_START on
    uint64_t hash;          // of its contents
    uint64_t directMapSize; // a machine with other memory is another machine
    // Where to go: as KI_LOW_START.
    uint64_t root, entry, stack, argument;
} HIBERNATION_HEADER;

#define HIBERNATION_HASH_BEGIN 0xCBF29CE484222325ull

static inline __attribute__((always_inline)) uint64_t
HibernationHash(uint64_t hash, const void *from, uint64_t size)
{
    const volatile uint64_t *words = from;
    for (uint64_t i = 0; i < size / 8; i++)
        hash = (hash ^ words[i]) * 0x100000001B3ull; // FNV-1a's prime
    return hash;
}

#endif
