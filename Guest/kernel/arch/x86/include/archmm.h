// x86: page tables of two levels and 4-byte entries, or of three and 8-byte ones
// (physical address extension), and where the kernel's half has what.

#ifndef VIGIL_ARCHMM_H
#define VIGIL_ARCHMM_H

#define MM_IS_SYSTEM(address) ((address) >> 31 != 0)

// The kernel's half. Memory is seen from MM_DIRECT_MAP_BASE up to the page tables:
// 896 MiB of it. The image lies between 0x82000000 and 0x84000000.
#define MM_NONPAGED_POOL_BASE 0x84000000
#define MM_NONPAGED_POOL_SIZE 0x2000000ul          // of each of its two regions
#define MM_DIRECT_MAP_BASE BOOT_DIRECT_MAP_BASE_X86
#define MM_PTE_BASE 0xC0000000
#define MM_SYSTEM_PTES_BASE 0xD0000000             // stacks, with guard pages
#define MM_SYSTEM_PTES_SIZE 0x4000000
#define MM_LOCAL_APIC_VA 0xFFFE0000                // where Windows' HAL has it
#define MM_USER_PROBE_ADDRESS 0x7FFF0000

#ifdef VIGIL_PAE

typedef ULONG64 MMPTE;
#define MM_TOP_SHIFT 30
#define MM_LEVEL_BITS 9
#define LARGE_PAGE_SIZE 0x200000ul
#define PTE_NX (1ull << 63)
#define PTE_FRAME 0x000FFFFFFFFFF000ull
#define MI_PAGING HIBERNATION_PAGING_PAE

// Two stores, in an order in which no processor sees a valid entry that is half of
// one and half of another.
FORCEINLINE void MiStorePte(volatile MMPTE *Pte, MMPTE Entry)
{
    volatile ULONG *Halves = (volatile ULONG *)Pte;
    if (Entry & 1) {
        Halves[1] = (ULONG)(Entry >> 32);
        Halves[0] = (ULONG)Entry;
    } else {
        Halves[0] = (ULONG)Entry;
        Halves[1] = (ULONG)(Entry >> 32);
    }
}

// An entry that names a prototype: its address in bits 32 to 63, the protection in
// bits 11 to 15 (`dt nt!_MMPTE_PROTOTYPE` of ntkrnlpa.exe).
#define MM_PROTOTYPE_PROTECTION(bits) ((MMPTE)(bits) << 11)
#define MM_PROTOTYPE_ENTRY(address) ((MMPTE)(ULONG_PTR)(address) << 32)
#define MM_PROTOTYPE_ADDRESS(entry) ((volatile MMPTE *)(ULONG_PTR)((entry) >> 32))

#else

typedef ULONG MMPTE;
#define MM_TOP_SHIFT 22
#define MM_LEVEL_BITS 10
#define LARGE_PAGE_SIZE 0x400000ul
#define PTE_NX ((MMPTE)0) // there is no such right
#define PTE_FRAME 0xFFFFF000
#define MI_PAGING HIBERNATION_PAGING_PLAIN

FORCEINLINE void MiStorePte(volatile MMPTE *Pte, MMPTE Entry)
{
    *Pte = Entry;
}

// An entry that names a prototype: no room for an address, but for its offset from
// MmProtopteBase, bits 2 to 8 of it in bits 1 to 7 and the rest from bit 11 on (`dt
// nt!_MMPTE_PROTOTYPE` of ntoskrnl.exe; MiProtoAddressForPte in Windows' mi386.h).
// There is no protection in it. Ours lie in the pool.
#define MM_PROTOPTE_BASE MM_NONPAGED_POOL_BASE
#define MM_PROTOTYPE_PROTECTION(bits) ((MMPTE)((bits) & 0))
#define MM_PROTOTYPE_ENTRY(address) \
    ((((ULONG_PTR)(address) - MM_PROTOPTE_BASE) >> 1 & 0xFE) | \
     (((ULONG_PTR)(address) - MM_PROTOPTE_BASE) << 2 & 0xFFFFF800))
#define MM_PROTOTYPE_ADDRESS(entry) \
    ((volatile MMPTE *)(MM_PROTOPTE_BASE + (((entry) & 0xFE) << 1) + ((entry) >> 11 << 9)))

#endif

#endif
