// The non-paged pool: one region for data, one whose memory is executable, too,
// as that of Windows' NonPagedPool is. Sizes are rounded to a power of two,
// freed blocks wait on a list of their size and region. Before each lies a header
// of 16 bytes, as Windows' POOL_HEADER is, though not of its layout.

#include "../include/mm.h"
#include "../include/rtl.h"

typedef struct {
    USHORT Class, State;
    ULONG Tag;
    PVOID Next; // while free
} __attribute__((aligned(16))) POOL_BLOCK;
C_ASSERT(sizeof(POOL_BLOCK) == 16);

#define BLOCK_IN_USE 0xA110
#define BLOCK_FREE 0xF4EE

#define SMALLEST_CLASS 5 // 32 bytes
#define LARGEST_CLASS 20 // 1 MiB

typedef struct {
    ULONG_PTR Base, Next, Mapped; // from Base to Next given out, to Mapped backed
    MMPTE Rights;
    POOL_BLOCK *FreeBlocks[LARGEST_CLASS + 1];
} POOL_REGION;

#define REGION(base, rights) {.Base = (base), .Next = (base), .Mapped = (base), .Rights = (rights)}
static POOL_REGION MiRegions[MmPoolRegions] = {
    [MmPoolNx] = REGION(MM_NONPAGED_POOL_BASE, MM_KERNEL_RW),
    [MmPoolExecutable] = REGION(MM_NONPAGED_POOL_BASE + MM_NONPAGED_POOL_SIZE, MM_KERNEL_RWX),
};
static KSPIN_LOCK MiPoolLock;
static MM_POOL_STATISTICS MiStatistics;

INIT_CODE void MiInitializePool(void)
{
    // All page tables of the regions at once, so that none is made later with
    // the lock held.
    for (ULONG_PTR At = 0; At < MmPoolRegions * MM_NONPAGED_POOL_SIZE; At += PAGE_SIZE << MM_LEVEL_BITS)
        MmFindPte(MiSystemRoot(), MM_NONPAGED_POOL_BASE + At, TRUE);
}

ULONG_PTR MiPoolRegionBase(MM_POOL_REGION Region)
{
    return MiRegions[Region].Base;
}

MMPTE MiPoolRegionRights(MM_POOL_REGION Region)
{
    return MiRegions[Region].Rights;
}

ULONG_PTR MiPoolRegionMapped(MM_POOL_REGION Region)
{
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&MiPoolLock);
    ULONG_PTR Mapped = MiRegions[Region].Mapped - MiRegions[Region].Base;
    KeReleaseSpinLock(&MiPoolLock, Irql);
    return Mapped;
}

static POOL_BLOCK *MiExtendPool(POOL_REGION *Region, ULONG Class)
{
    SIZE_T Size = (SIZE_T)1 << Class;
    if (Region->Next + Size > Region->Base + MM_NONPAGED_POOL_SIZE)
        return NULL;
    POOL_BLOCK *Block = (POOL_BLOCK *)Region->Next;
    while (Region->Mapped < Region->Next + Size) {
        ULONG64 Frame = MmAllocateFrame();
        if (!Frame)
            return NULL;
        MmMapPage(MiSystemRoot(), Region->Mapped, (MMPTE)Frame | Region->Rights);
        Region->Mapped += PAGE_SIZE;
    }
    Region->Next += Size;
    return Block;
}

// Where a block lies says which list it goes back to.
static POOL_REGION *MiRegionOf(const POOL_BLOCK *Block)
{
    BOOLEAN IsData = (ULONG_PTR)Block - MM_NONPAGED_POOL_BASE < MM_NONPAGED_POOL_SIZE;
    return &MiRegions[IsData ? MmPoolNx : MmPoolExecutable];
}

// A row of the statistics. Tags beyond the table's end share the last row.
static MM_POOL_TAG *MiTagRow(ULONG Tag)
{
    MM_POOL_TAG *Row = MiStatistics.Tags;
    while (Row->Tag && Row->Tag != Tag && Row < &MiStatistics.Tags[MM_POOL_TAGS - 1])
        Row++;
    if (!Row->Tag)
        Row->Tag = Tag;
    return Row;
}

static void MiCount(const POOL_BLOCK *Block, LONGLONG Sign)
{
    LONGLONG Size = Sign * (1ll << Block->Class);
    MM_POOL_TAG *Row = MiTagRow(Block->Tag);
    Row->Blocks += (ULONG64)Sign;
    Row->Bytes += (ULONG64)Size;
    MiStatistics.Blocks += (ULONG64)Sign;
    MiStatistics.Bytes += (ULONG64)Size;
    if (Sign > 0)
        MiStatistics.Allocations++;
}

// At DISPATCH_LEVEL or below. Every type is non-paged here, and executable is
// NonPagedPool alone.
PVOID ExAllocatePoolWithTag(POOL_TYPE Type, SIZE_T Size, ULONG Tag)
{
    POOL_REGION *Region = &MiRegions[Type == NonPagedPool ? MmPoolExecutable : MmPoolNx];
    USHORT Class = SMALLEST_CLASS;

    while (Class <= LARGEST_CLASS && ((SIZE_T)1 << Class) < Size + sizeof(POOL_BLOCK))
        Class++;
    if (Class > LARGEST_CLASS)
        return NULL;

    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&MiPoolLock);
    POOL_BLOCK *Block = Region->FreeBlocks[Class];
    if (Block)
        Region->FreeBlocks[Class] = Block->Next;
    else
        Block = MiExtendPool(Region, Class);
    if (Block) {
        Block->Class = Class;
        Block->State = BLOCK_IN_USE;
        Block->Tag = Tag;
        MiCount(Block, 1);
    }
    KeReleaseSpinLock(&MiPoolLock, Irql);
    if (!Block)
        return NULL;
    RtlZeroMemory(Block + 1, ((SIZE_T)1 << Class) - sizeof *Block);
    return Block + 1;
}

// BAD_POOL_CALLER, for a tag that is not the block's (0 is any), a block freed
// before, or one that is none.
void ExFreePoolWithTag(PVOID Pointer, ULONG Tag)
{
    if (!Pointer)
        return;
    POOL_BLOCK *Block = (POOL_BLOCK *)Pointer - 1;
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&MiPoolLock);
    if (Block->State != BLOCK_IN_USE || Block->Class < SMALLEST_CLASS || Block->Class > LARGEST_CLASS)
        KeBugCheckEx(BAD_POOL_CALLER, 7, (ULONG_PTR)Pointer, Block->Tag, Tag);
    if (Tag && Block->Tag != Tag)
        KeBugCheckEx(BAD_POOL_CALLER, 0xA, (ULONG_PTR)Pointer, Block->Tag, Tag);
    MiCount(Block, -1);
    Block->State = BLOCK_FREE;
    POOL_REGION *Region = MiRegionOf(Block);
    Block->Next = Region->FreeBlocks[Block->Class];
    Region->FreeBlocks[Block->Class] = Block;
    KeReleaseSpinLock(&MiPoolLock, Irql);
}

void MmQueryPool(MM_POOL_STATISTICS *Statistics)
{
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&MiPoolLock);
    *Statistics = MiStatistics;
    KeReleaseSpinLock(&MiPoolLock, Irql);
    Statistics->Mapped = 0;
    for (ULONG i = 0; i < MmPoolRegions; i++)
        Statistics->Mapped += MiPoolRegionMapped(i);
}
