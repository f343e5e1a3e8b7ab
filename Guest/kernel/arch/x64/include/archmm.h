// x64: page tables of four levels, and where the kernel's half has what.

#ifndef VIGIL_ARCHMM_H
#define VIGIL_ARCHMM_H

typedef ULONG64 MMPTE;

// Each level is chosen by so many bits of the address, the first by those from here on.
#define MM_TOP_SHIFT 39
#define MM_LEVEL_BITS 9
#define MM_IS_SYSTEM(address) ((address) >> 47 != 0)

#define LARGE_PAGE_SIZE 0x200000ull

// Page-table entry bits: Intel SDM volume 3A, section 4.5.4.
#define PTE_NX (1ull << 63)
#define PTE_FRAME 0x000FFFFFFFFFF000ull

// One store, which no processor can see half of.
FORCEINLINE void MiStorePte(volatile MMPTE *Pte, MMPTE Entry)
{
    *Pte = Entry;
}

// How the loader is to enter a kernel that hibernated.
#define MI_PAGING HIBERNATION_PAGING_LONG

// The kernel's half, below what the loader placed.
#define MM_DIRECT_MAP_BASE BOOT_DIRECT_MAP_BASE_X64
#define MM_SYSTEM_PTES_BASE 0xFFFFA00000000000ull   // stacks, with guard pages
#define MM_NONPAGED_POOL_BASE 0xFFFFB80000000000ull
#define MM_NONPAGED_POOL_SIZE 0x4000000ull          // of each of its two regions
#define MM_LOCAL_APIC_VA 0xFFFFFFFFFFFE0000ull      // where Windows has it, too
#define MM_PTE_BASE (0xFFFF000000000000ull | MiBootBlock->selfMapIndex << 39)
#define MM_USER_PROBE_ADDRESS 0x7FFFFFFF0000ull

// An entry that names a prototype: its address in bits 16 to 63 (`dt nt!_MMPTE_PROTOTYPE`).
#define MM_PROTOTYPE_PROTECTION(bits) ((MMPTE)(bits) << 5)
#define MM_PROTOTYPE_ENTRY(address) ((MMPTE)(ULONG_PTR)(address) << 16)
#define MM_PROTOTYPE_ADDRESS(entry) ((volatile MMPTE *)((LONGLONG)(entry) >> 16))

#endif
