// The page-table filter: performs the page-table writes of the kernel's that lead here by an interrupt, and
// reports those that matter. What it shares with the host.

#ifndef VIGIL_PTFILTER_FILTER_H
#define VIGIL_PTFILTER_FILTER_H

// Powers of two.
#define FILTER_WRITER_SLOTS 2048
#define FILTER_WATCH_SLOTS 8192
#define FILTER_RING_SLOTS 1024

#define FILTER_WRITER_SIZE 24
#define FILTER_WATCH_SIZE 16
#define FILTER_REPORT_SIZE 64

// Both tables are open-addressed: a key is in one of so many slots from its hash on.
#define FILTER_PROBES 16

#define FILTER_DATA_VERSION 1
#define FILTER_DATA_SIZE 0x100

#ifndef __ASSEMBLER__

#include "../common/agent.h"

// An instruction that an interrupt stands for.
typedef struct {
    u64 End; // the address of the next one, where the interrupt returns to; 0: an empty slot
    u8 Kind; // FILTER_MOVE …
    u8 Base, Index, Source; // registers' numbers, or FILTER_NONE; as Source, of an immediate
    u8 Shift; // of the index: 0 to 3
    u8 Reserved[3];
    s32 Displacement, Immediate;
} FILTER_WRITER;
AGENT_ASSERT(sizeof(FILTER_WRITER) == FILTER_WRITER_SIZE);

enum { FILTER_MOVE, FILTER_EXCHANGE, FILTER_COMPARE_EXCHANGE };
#define FILTER_NONE 0xFF

// An entry whose changes matter, at one of the linear addresses at which the kernel writes it. The host writes
// Address last when it fills a slot, and alone when it empties one.
typedef struct {
    volatile u64 Address; // FILTER_FREE, FILTER_REMOVED, or the entry's
    volatile u32 Index;   // the host's own number for it
    volatile u32 Flags;   // FILTER_IMMEDIATE
} FILTER_WATCH;
AGENT_ASSERT(sizeof(FILTER_WATCH) == FILTER_WATCH_SIZE);

#define FILTER_FREE 0ull    // no key was ever further on
#define FILTER_REMOVED 1ull // keys may be further on
#define FILTER_IMMEDIATE 1u // a change goes by the report point

// What matters of an entry: whether and to where it leads, and with which rights. Intel SDM volume 3A, 4.5.4.
#define ENTRY_PRESENT (1ull << 0)
#define ENTRY_WRITABLE (1ull << 1)
#define ENTRY_USER (1ull << 2)
#define ENTRY_LARGE (1ull << 7)
#define ENTRY_ADDRESS 0x000FFFFFFFFFF000ull
#define ENTRY_NO_EXECUTE (1ull << 63)
#define ENTRY_MATTERS \
    (ENTRY_PRESENT | ENTRY_WRITABLE | ENTRY_USER | ENTRY_LARGE | ENTRY_ADDRESS | ENTRY_NO_EXECUTE)

// One change of a watched entry.
typedef struct {
    volatile u64 Sequence; // from 1 on, written last; another number: not written yet
    u64 End;               // of the instruction
    u64 Address;           // the entry's, as it was written
    u64 Old, New;
    u32 Watch, Flags;      // of the watch
    u64 Reserved[2];
} FILTER_REPORT;
AGENT_ASSERT(sizeof(FILTER_REPORT) == FILTER_REPORT_SIZE);

// AgentData. Offsets are from the agent's start. What processors write and what the host writes are in cache
// lines of their own.
typedef struct {
    u32 Version, Size;
    u32 Writers, WriterSlots, WriterSize; // 0x08
    u32 Watches, WatchSlots, WatchSize;   // 0x14
    u32 Ring, RingSlots, RingSlotSize;    // 0x20
    u32 Probes;                           // 0x2C
    u32 ReportPoint;                      // 0x30: a NOP; RAX is the report's sequence there, or ~0: it was lost
    u32 Reserved034[3];
    volatile u64 Head;                    // 0x40: reports so far
    u64 Reserved048[7];
    volatile u64 Tail;                    // 0x80: of those, what the host has read; written by the host
    u64 Reserved088[7];
    volatile u64 Writes;                  // 0xC0: performed
    volatile u64 Lost;                    // 0xC8: reports for which there was no room
    volatile u64 Unknown;                 // 0xD0: interrupts from where no known instruction is
    volatile u64 FromUser;                // 0xD8: interrupts from a program's code
    volatile u64 LastUnknown;             // 0xE0: where the last unknown one returned to
    u64 Reserved0E8[3];
} FILTER_DATA;
AGENT_ASSERT(offsetof(FILTER_DATA, Head) == 0x40);
AGENT_ASSERT(offsetof(FILTER_DATA, Tail) == 0x80);
AGENT_ASSERT(offsetof(FILTER_DATA, Writes) == 0xC0);
AGENT_ASSERT(offsetof(FILTER_DATA, LastUnknown) == 0xE0);
AGENT_ASSERT(sizeof(FILTER_DATA) == FILTER_DATA_SIZE);

extern FILTER_DATA AgentData HIDDEN; // data.S

// What entry.S and the processor have pushed.
typedef struct {
    u64 Registers[16]; // by their hardware numbers; RSP's is not the interrupted one
    u64 Rip, Cs, Rflags, Rsp, Ss;
} FILTER_FRAME;

u64 FilterHandle(FILTER_FRAME *Frame) HIDDEN;

#endif
#endif
