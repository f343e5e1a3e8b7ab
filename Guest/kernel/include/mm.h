// Memory: physical frames, mappings, address spaces, pool.

#ifndef VIGIL_MM_H
#define VIGIL_MM_H

#include "ke.h"

#define PAGE_SIZE 0x1000ull
#define PAGE_SHIFT 12
#define PAGE_ALIGN_UP(size) (((size) + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1))

// Page-table entry bits: Intel SDM volume 3A, section 4.5.4.
#define PTE_PRESENT 0x001ull
#define PTE_WRITE 0x002ull
#define PTE_USER 0x004ull
#define PTE_CACHE_DISABLE 0x010ull
#define PTE_LARGE 0x080ull
#define PTE_NX (1ull << 63)
#define PTE_FRAME 0x000FFFFFFFFFF000ull

#define MM_KERNEL_RW (PTE_PRESENT | PTE_WRITE | PTE_NX)
#define MM_KERNEL_RWX (PTE_PRESENT | PTE_WRITE)
#define MM_USER_RW (PTE_PRESENT | PTE_WRITE | PTE_USER | PTE_NX)
#define MM_USER_R (PTE_PRESENT | PTE_USER | PTE_NX)
#define MM_USER_RX (PTE_PRESENT | PTE_USER)

// The kernel's half, below what the loader placed.
#define MM_SYSTEM_PTES_BASE 0xFFFFA00000000000ull   // stacks, with guard pages
#define MM_NONPAGED_POOL_BASE 0xFFFFB80000000000ull
#define MM_NONPAGED_POOL_SIZE 0x4000000ull          // of each of its two regions
#define MM_LOCAL_APIC_VA 0xFFFFFFFFFFFE0000ull      // where Windows has it, too

extern ULONG64 MmUserProbeAddress;      // first address that no user may pass
extern const BOOT_BLOCK *MiBootBlock;

FORCEINLINE PVOID MmPhysicalToVirtual(ULONG64 Address)
{
    return (PVOID)(BOOT_DIRECT_MAP_BASE + Address);
}

// frames.c
void MiInitializeFrames(const BOOT_BLOCK *Block);
ULONG64 MmAllocateFrame(void); // zeroed; 0 when there is none
void MmFreeFrame(ULONG64 Frame);
ULONG64 MmFramesEnd(void); // no frame from there on was ever given out

// pte.c
void MiWritePte(volatile ULONG64 *Pte, ULONG64 Entry);
ULONG64 MiExchangePte(volatile ULONG64 *Pte, ULONG64 Entry); // the entry before
ULONG64 MiChangePte(volatile ULONG64 *Pte, ULONG64 Mask, ULONG64 Entry); // the entry before

// map.c
void MmMapPage(ULONG64 Root, ULONG64 Address, ULONG64 Entry);
void MmUnmapPage(ULONG64 Root, ULONG64 Address); // on all processors
ULONG64 *MmFindPte(ULONG64 Root, ULONG64 Address, BOOLEAN Create);
ULONG64 MmGetPhysicalAddress(ULONG64 Root, ULONG64 Address); // ~0 when absent
BOOLEAN MmIsUserRangeValid(ULONG64 Root, ULONG64 Address, SIZE_T Size, BOOLEAN Write);
ULONG64 MiSystemRoot(void);

// spaces.c
void MiInitializeSpaces(const BOOT_BLOCK *Block);
ULONG64 MmCreateAddressSpace(void);
PVOID MmAllocateSystemPages(SIZE_T Size); // between guard pages; NULL: none
ULONG64 MmReserveSystemPages(SIZE_T Size); // addresses only
PVOID MmCreateKernelStack(void);
void MmDeleteKernelStack(PVOID StackLimit);
ULONG64 MmCreateLowRoot(void); // the kernel's half and the first 2 MiB, executable
void MmAllocateUserPages(ULONG64 Root, ULONG64 Address, SIZE_T Size, ULONG64 Rights);
void MmCopyToSpace(ULONG64 Root, ULONG64 Address, const void *From, SIZE_T Size);

// discard.c
void MiFreeInitializationCode(void);

// paging.c
typedef enum {
    MmTrimToTransition,
    MmTrimToPrototype,  // which is in transition
    MmTrimToSharedPage, // a prototype which is valid
} MM_TRIM_KIND;
void MiInitializePaging(void);
ULONG MmTrimPageableCode(MM_TRIM_KIND Kind); // how many pages
BOOLEAN MmAccessFault(ULONG64 Address);
ULONG64 MmMoveConstantPage(ULONG64 Address, ULONG64 *New); // the frame before; 0: not moved
extern volatile ULONG64 MmPagesIn; // brought in so far

// image.c: memory to disk.
NTSTATUS MmPrepareImage(void);
BOOLEAN MmDiscardImage(void);
void MmCloseImageWindow(void);

// poolmove.c
NTSTATUS MmPreparePoolMove(void);
void MmTakePoolAway(void);
void MmReturnPool(void);
void MmFinishPoolMove(void);

// pool.c
typedef enum { NonPagedPool, PagedPool, NonPagedPoolNx = 512 } POOL_TYPE;
typedef enum { MmPoolNx, MmPoolExecutable, MmPoolRegions } MM_POOL_REGION;
void MiInitializePool(void);
ULONG64 MiPoolRegionBase(MM_POOL_REGION Region);
ULONG64 MiPoolRegionRights(MM_POOL_REGION Region);
ULONG64 MiPoolRegionMapped(MM_POOL_REGION Region); // bytes from the base on
#define MM_POOL_TAGS 32
typedef struct {
    ULONG Tag;
    ULONG64 Blocks, Bytes; // in use; of whole blocks
} MM_POOL_TAG;
typedef struct {
    ULONG64 Blocks, Bytes, Allocations, Mapped;
    MM_POOL_TAG Tags[MM_POOL_TAGS];
} MM_POOL_STATISTICS;
void MmQueryPool(MM_POOL_STATISTICS *Statistics);
PVOID ExAllocatePoolWithTag(POOL_TYPE Type, SIZE_T Size, ULONG Tag);
void ExFreePoolWithTag(PVOID Block, ULONG Tag);

#endif
