// Memory: physical frames, mappings, address spaces, pool.

#ifndef VIGIL_MM_H
#define VIGIL_MM_H

#include "ke.h"

#define PAGE_SHIFT 12
#define PAGE_SIZE ((ULONG_PTR)0x1000)
#define PAGE_ALIGN_UP(size) (((size) + 0xFFF) >> PAGE_SHIFT << PAGE_SHIFT) // of any width
#define PAGE_OF(address) ((ULONG_PTR)(address) & ~(PAGE_SIZE - 1))

#include "archmm.h" // MMPTE, an entry of a page table, and the kernel's half

// Page-table entry bits: Intel SDM volume 3A, sections 4.3 to 4.5.
#define PTE_PRESENT ((MMPTE)0x001)
#define PTE_WRITE ((MMPTE)0x002)
#define PTE_USER ((MMPTE)0x004)
#define PTE_CACHE_DISABLE ((MMPTE)0x010)
#define PTE_LARGE ((MMPTE)0x080)

#define MM_KERNEL_RW (PTE_PRESENT | PTE_WRITE | PTE_NX)
#define MM_KERNEL_RWX (PTE_PRESENT | PTE_WRITE)
#define MM_USER_RW (PTE_PRESENT | PTE_WRITE | PTE_USER | PTE_NX)
#define MM_USER_R (PTE_PRESENT | PTE_USER | PTE_NX)
#define MM_USER_RX (PTE_PRESENT | PTE_USER)

extern ULONG_PTR MmUserProbeAddress;    // first address that no user may pass
extern const BOOT_BLOCK *MiBootBlock;

FORCEINLINE PVOID MmPhysicalToVirtual(ULONG64 Address)
{
    return (PVOID)(ULONG_PTR)(MM_DIRECT_MAP_BASE + Address);
}

// frames.c
void MiInitializeFrames(const BOOT_BLOCK *Block);
ULONG64 MmAllocateFrame(void); // zeroed; 0 when there is none
void MmFreeFrame(ULONG64 Frame);
ULONG64 MmFramesEnd(void); // no frame from there on was ever given out

// pte.c
void MiWritePte(volatile MMPTE *Pte, MMPTE Entry);
MMPTE MiExchangePte(volatile MMPTE *Pte, MMPTE Entry); // the entry before
MMPTE MiChangePte(volatile MMPTE *Pte, MMPTE Mask, MMPTE Entry); // the entry before

// map.c
void MmMapPage(ULONG_PTR Root, ULONG_PTR Address, MMPTE Entry);
void MmUnmapPage(ULONG_PTR Root, ULONG_PTR Address); // on all processors
MMPTE *MmFindPte(ULONG_PTR Root, ULONG_PTR Address, BOOLEAN Create);
ULONG64 MmGetPhysicalAddress(ULONG_PTR Root, ULONG_PTR Address); // ~0 when absent
BOOLEAN MmIsUserRangeValid(ULONG_PTR Root, ULONG_PTR Address, SIZE_T Size, BOOLEAN Write);
ULONG_PTR MiSystemRoot(void);

// spaces.c
void MiInitializeSpaces(const BOOT_BLOCK *Block);
ULONG_PTR MmCreateAddressSpace(void); // the root; 0: none
PVOID MmAllocateSystemPages(SIZE_T Size); // between guard pages; NULL: none
ULONG_PTR MmReserveSystemPages(SIZE_T Size); // addresses only
PVOID MmCreateKernelStack(void);
void MmDeleteKernelStack(PVOID StackLimit);
void MmAllocateUserPages(ULONG_PTR Root, ULONG_PTR Address, SIZE_T Size, MMPTE Rights);
void MmCopyToSpace(ULONG_PTR Root, ULONG_PTR Address, const void *From, SIZE_T Size);

// arch/*/roots.c: the tables that a root is made of.
void MiPrepareSystemTables(void); // before the first root is copied
ULONG_PTR MiCreateRoot(void);     // the kernel's half alone; 0: no memory
ULONG_PTR MmCreateLowRoot(void);  // with the first 2 MiB, executable

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
BOOLEAN MmAccessFault(ULONG_PTR Address);
ULONG64 MmMoveConstantPage(ULONG_PTR Address, ULONG64 *New); // the frame before; 0: not moved
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
ULONG_PTR MiPoolRegionBase(MM_POOL_REGION Region);
MMPTE MiPoolRegionRights(MM_POOL_REGION Region);
ULONG_PTR MiPoolRegionMapped(MM_POOL_REGION Region); // bytes from the base on
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
