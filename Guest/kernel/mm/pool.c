// The non-paged pool: sizes are rounded to a power of two, freed blocks wait
// on a list of their size. Before each lies a header of 16 bytes, as Windows'
// POOL_HEADER is, though not of its layout.

#include "../include/mm.h"
#include "../include/rtl.h"

typedef struct {
    ULONG Class;
    ULONG Tag;
    PVOID Next; // while free
} POOL_BLOCK;
C_ASSERT(sizeof(POOL_BLOCK) == 16);

#define SMALLEST_CLASS 5 // 32 bytes
#define LARGEST_CLASS 20 // 1 MiB

static POOL_BLOCK *MiFreeBlocks[LARGEST_CLASS + 1];
static ULONG64 MiPoolNext = MM_NONPAGED_POOL_BASE;
static ULONG64 MiPoolMapped = MM_NONPAGED_POOL_BASE;
static volatile LONG MiPoolLock;

INIT_CODE void MiInitializePool(void)
{
    // All page tables of the region at once, so that none is made later with
    // the lock held.
    for (ULONG64 At = 0; At < MM_NONPAGED_POOL_SIZE; At += 512 * PAGE_SIZE)
        MmFindPte(MiSystemRoot(), MM_NONPAGED_POOL_BASE + At, TRUE);
}

static ULONG64 MiLockPool(void)
{
    ULONG64 Flags = KiReadFlags();
    KiDisableInterrupts();
    while (__atomic_exchange_n(&MiPoolLock, 1, __ATOMIC_ACQUIRE))
        __builtin_ia32_pause();
    return Flags;
}

static void MiUnlockPool(ULONG64 Flags)
{
    __atomic_store_n(&MiPoolLock, 0, __ATOMIC_RELEASE);
    if (Flags & 0x200)
        KiEnableInterrupts();
}

static POOL_BLOCK *MiExtendPool(ULONG Class)
{
    SIZE_T Size = 1ull << Class;
    if (MiPoolNext + Size > MM_NONPAGED_POOL_BASE + MM_NONPAGED_POOL_SIZE)
        return NULL;
    POOL_BLOCK *Block = (POOL_BLOCK *)MiPoolNext;
    while (MiPoolMapped < MiPoolNext + Size) {
        ULONG64 Frame = MmAllocateFrame();
        if (!Frame)
            return NULL;
        MmMapPage(MiSystemRoot(), MiPoolMapped, Frame | MM_KERNEL_RW);
        MiPoolMapped += PAGE_SIZE;
    }
    MiPoolNext += Size;
    return Block;
}

PVOID ExAllocatePoolWithTag(POOL_TYPE Type, SIZE_T Size, ULONG Tag)
{
    ULONG Class = SMALLEST_CLASS;
    (void)Type;

    while (Class <= LARGEST_CLASS && (1ull << Class) < Size + sizeof(POOL_BLOCK))
        Class++;
    if (Class > LARGEST_CLASS)
        return NULL;

    ULONG64 Flags = MiLockPool();
    POOL_BLOCK *Block = MiFreeBlocks[Class];
    if (Block)
        MiFreeBlocks[Class] = Block->Next;
    else
        Block = MiExtendPool(Class);
    MiUnlockPool(Flags);
    if (!Block)
        return NULL;
    Block->Class = Class;
    Block->Tag = Tag;
    RtlZeroMemory(Block + 1, (1ull << Class) - sizeof *Block);
    return Block + 1;
}

void ExFreePoolWithTag(PVOID Pointer, ULONG Tag)
{
    if (!Pointer)
        return;
    POOL_BLOCK *Block = (POOL_BLOCK *)Pointer - 1;
    // BAD_POOL_CALLER, for a tag that is not the block's or a block that is none.
    if ((Tag && Block->Tag != Tag) || Block->Class < SMALLEST_CLASS ||
        Block->Class > LARGEST_CLASS)
        KeBugCheckEx(0xC2, 0xA, (ULONG_PTR)Pointer, Block->Tag, Tag);
    ULONG64 Flags = MiLockPool();
    Block->Tag = 0;
    Block->Next = MiFreeBlocks[Block->Class];
    MiFreeBlocks[Block->Class] = Block;
    MiUnlockPool(Flags);
}
