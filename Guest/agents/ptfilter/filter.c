// Performs a page-table write in the place of the instruction that an interrupt stands for, and decides whether
// the host is to hear of it.

#include "filter.h"

#define RFLAGS_INTERRUPTS 0x200ull
// CF, PF, AF, ZF, SF, OF: those that CMPXCHG sets.
#define RFLAGS_ARITHMETIC 0x8D5ull
#define RFLAGS_ZERO 0x40ull

HIDDEN FILTER_WRITER FilterWriters[FILTER_WRITER_SLOTS];
HIDDEN FILTER_WATCH FilterWatches[FILTER_WATCH_SLOTS];
HIDDEN FILTER_REPORT FilterRing[FILTER_RING_SLOTS];

// Multiplicative hashing (Knuth, volume 3, 6.4), the multiplier 2^64 over the golden ratio.
static u32 FilterHash(u64 Key)
{
    return (u32)(Key * 0x9E3779B97F4A7C15ull >> 32);
}

static const FILTER_WRITER *FilterFindWriter(u64 End)
{
    for (u32 Hash = FilterHash(End), i = 0; i < FILTER_PROBES; i++) {
        const FILTER_WRITER *Writer = &FilterWriters[(Hash + i) % FILTER_WRITER_SLOTS];
        u64 Found = *(const volatile u64 *)&Writer->End;
        if (Found == End)
            return Writer;
        if (!Found)
            break;
    }
    return 0;
}

static const FILTER_WATCH *FilterFindWatch(u64 Address)
{
    for (u32 Hash = FilterHash(Address), i = 0; i < FILTER_PROBES; i++) {
        const FILTER_WATCH *Watch = &FilterWatches[(Hash + i) % FILTER_WATCH_SLOTS];
        u64 Found = Watch->Address;
        if (Found == Address)
            return Watch;
        if (Found == FILTER_FREE)
            break;
    }
    return 0;
}

static u64 FilterCount(volatile u64 *Counter)
{
    return __atomic_add_fetch(Counter, 1, __ATOMIC_RELAXED);
}

static u64 FilterExchange(volatile u64 *Place, u64 Value)
{
    __asm__ volatile("xchgq %0, %1" : "+r"(Value), "+m"(*Place) : : "memory");
    return Value;
}

// All that the instruction does to registers, memory and flags. The entry before; *New is the one after.
static u64 FilterPerform(const FILTER_WRITER *Writer, FILTER_FRAME *Frame, volatile u64 *Place, u64 *New)
{
    u64 *Registers = Frame->Registers, Old;
    u64 Value = Writer->Source == FILTER_NONE ? (u64)(s64)Writer->Immediate : Registers[Writer->Source & 15];

    if (Writer->Kind == FILTER_COMPARE_EXCHANGE) {
        u64 Flags;
        Old = Registers[0];
        __asm__ volatile("lock cmpxchgq %3, %1\n\t"
                         "pushfq\n\t"
                         "popq %2"
                         : "+a"(Old), "+m"(*Place), "=r"(Flags)
                         : "r"(Value)
                         : "memory", "cc");
        Registers[0] = Old;
        Frame->Rflags = (Frame->Rflags & ~RFLAGS_ARITHMETIC) | (Flags & RFLAGS_ARITHMETIC);
        *New = Flags & RFLAGS_ZERO ? Value : Old;
        return Old;
    }
    Old = FilterExchange(Place, Value);
    if (Writer->Kind == FILTER_EXCHANGE)
        Registers[Writer->Source & 15] = Old;
    *New = Value;
    return Old;
}

// The report's sequence, or ~0 where there is no room: nothing is overwritten that the host has not read.
static u64 FilterReport(const FILTER_WRITER *Writer, const FILTER_WATCH *Watch, u64 Address, u64 Old, u64 New)
{
    u64 Head = __atomic_load_n(&AgentData.Head, __ATOMIC_ACQUIRE);
    // A number is taken only with its slot: one that was taken and not used would stop the host there.
    do {
        if (Head - __atomic_load_n(&AgentData.Tail, __ATOMIC_ACQUIRE) >= FILTER_RING_SLOTS) {
            FilterCount(&AgentData.Lost);
            return ~0ull;
        }
    } while (!__atomic_compare_exchange_n(&AgentData.Head, &Head, Head + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));

    FILTER_REPORT *Report = &FilterRing[Head % FILTER_RING_SLOTS];
    Report->End = Writer->End;
    Report->Address = Address;
    Report->Old = Old;
    Report->New = New;
    Report->Watch = Watch->Index;
    Report->Flags = Watch->Flags;
    __atomic_store_n(&Report->Sequence, Head + 1, __ATOMIC_RELEASE);
    return Head + 1;
}

// Not 0: by way of the report point.
HIDDEN u64 FilterHandle(FILTER_FRAME *Frame)
{
    u64 Cs, New;

    // An interrupt that has changed the privilege level comes from a program: the gate does not let it through.
    __asm__("movq %%cs, %0" : "=r"(Cs));
    if ((Frame->Cs ^ Cs) & 3) {
        FilterCount(&AgentData.FromUser);
        return 0;
    }
    const FILTER_WRITER *Writer = FilterFindWriter(Frame->Rip);
    if (!Writer) {
        AgentData.LastUnknown = Frame->Rip;
        FilterCount(&AgentData.Unknown);
        return 0;
    }
    u64 Address = (u64)(s64)Writer->Displacement;
    if (Writer->Base != FILTER_NONE)
        Address += Frame->Registers[Writer->Base & 15];
    if (Writer->Index != FILTER_NONE)
        Address += Frame->Registers[Writer->Index & 15] << (Writer->Shift & 3);

    // The table that is written may itself be absent: then the fault is handled as the instruction's own would
    // be, with interrupts on where it had them on.
    u64 Interrupts = Frame->Rflags & RFLAGS_INTERRUPTS;
    if (Interrupts)
        __asm__ volatile("sti" : : : "memory");
    u64 Old = FilterPerform(Writer, Frame, (volatile u64 *)Address, &New);
    if (Interrupts)
        __asm__ volatile("cli" : : : "memory");
    FilterCount(&AgentData.Writes);

    if (!((Old ^ New) & ENTRY_MATTERS))
        return 0;
    const FILTER_WATCH *Watch = FilterFindWatch(Address);
    if (!Watch)
        return 0;
    u64 Sequence = FilterReport(Writer, Watch, Address, Old, New);
    return Watch->Flags & FILTER_IMMEDIATE ? Sequence : 0;
}

// The filter has nothing to do by itself.
HIDDEN void AgentWork(AGENT *Agent)
{
    (void)Agent;
}
