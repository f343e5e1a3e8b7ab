// What every agent has in common. An agent is one piece of memory in the guest's non-paged pool: this
// header, code, data. It runs wherever it lies. The host fills in the header and, from then on, reads and
// writes some of its fields while the guest runs: those are volatile.

#ifndef VIGIL_AGENT_H
#define VIGIL_AGENT_H

#include <stddef.h>
#include <stdint.h>

typedef uint64_t u64;
typedef int64_t s64;
typedef uint32_t u32;
typedef int32_t s32;
typedef uint16_t u16;
typedef uint8_t u8;

// Functions of the guest, and those that it calls.
#define WINDOWS __attribute__((ms_abi))
#define HIDDEN __attribute__((visibility("hidden")))
#define AGENT_ASSERT(condition) _Static_assert(condition, #condition)

#define AGENT_MAGIC 0x31746E6741676956ull // "VigAgnt1"

typedef u32 NTSTATUS;
#define NT_SUCCESS(status) ((s32)(status) >= 0)

// wdm.h's OBJECT_ATTRIBUTES, and the mark of handles that no process can use.
typedef struct {
    u32 Length;
    void *RootDirectory, *ObjectName;
    u32 Attributes;
    void *SecurityDescriptor, *SecurityQualityOfService;
} OBJECT_ATTRIBUTES;
#define OBJ_KERNEL_HANDLE 0x200u

typedef WINDOWS void THREAD_ROUTINE(void *Context);

typedef enum {
    AgentLoaded,    // in memory, no thread yet
    AgentRunning,   // its thread is in it
    AgentDraining,  // told to leave: waits until nobody else is in it
    AgentLeft,      // nobody is in it, its memory is the host's to free
    AgentAbandoned, // the host gives no sign of life: it frees itself
} AGENT_STAGE;

typedef struct {
    u64 Magic;       // 0x00
    u32 Version;     // 0x08
    u32 FileSize;    // 0x0C: of the bytes to be written; what follows is zero
    u32 Size;        // 0x10: of all of it
    u32 Start;       // 0x14: AgentStart, in bytes from here
    u32 Gate;        // 0x18: where an interrupt gate leads; 0: none does
    u32 GateLength;  // 0x1C: of the code that runs before entering is counted, or after leaving is
    u32 Data;        // 0x20: what the agent shares with the host besides this
    u32 ThreadEntry; // 0x24: where its thread begins
    // The guest's functions: filled in by the host.
    WINDOWS NTSTATUS (*PsCreateSystemThread)(void **, u32, OBJECT_ATTRIBUTES *, void *, void *,
                                             THREAD_ROUTINE *, void *); // 0x28
    WINDOWS NTSTATUS (*PsTerminateSystemThread)(NTSTATUS);              // 0x30
    WINDOWS NTSTATUS (*ZwClose)(void *);                                // 0x38
    WINDOWS void (*KeInitializeEvent)(void *, u32, u8);                 // 0x40
    WINDOWS NTSTATUS (*KeWaitForSingleObject)(void *, u32, u8, u8, s64 *); // 0x48
    WINDOWS void (*ExFreePoolWithTag)(void *, u32);                     // 0x50
    u64 SharedData;          // 0x58: KUSER_SHARED_DATA
    u32 Tag;                 // 0x60: of the pool block
    u32 Interval;            // 0x64: between two rounds of its thread, in milliseconds
    u32 LeaseRounds;         // 0x68: after so many without a change of Lease the host is dead
    volatile u32 Lease;      // 0x6C: changed by a living host
    volatile u32 StopWanted; // 0x70: written by the host, which then sets Event: 1 to leave, 2 to free itself
                             // besides; 3 by the thread, when it leaves its memory to the host
    volatile u32 MayLeave;   // 0x74: written by the host: nothing of the guest leads here any more
    volatile u32 Stage;      // 0x78: AGENT_STAGE
    volatile s32 Inside;     // 0x7C: how many are in it that came by the gate
    volatile u64 Rounds;     // 0x80: of its thread
    void *Thread;            // 0x88: handle, closed at once
    u64 Event[8];            // 0x90: a KEVENT (three words in all x64 kernels), with room
    u64 ReturnInstruction;   // 0xD0: a `ret` of the guest's; filled in by the host
    u64 Reserved[5];         // 0xD8
} AGENT;

AGENT_ASSERT(offsetof(AGENT, PsCreateSystemThread) == 0x28);
AGENT_ASSERT(offsetof(AGENT, SharedData) == 0x58);
AGENT_ASSERT(offsetof(AGENT, Lease) == 0x6C);
AGENT_ASSERT(offsetof(AGENT, Inside) == 0x7C);
AGENT_ASSERT(offsetof(AGENT, Event) == 0x90);
AGENT_ASSERT(offsetof(AGENT, ReturnInstruction) == 0xD0);
AGENT_ASSERT(sizeof(AGENT) == 0x100);

// header.S. The linker's symbol is where this header is.
extern AGENT AgentHeader HIDDEN;

// leave.S: neither returns. The first says that it has left and goes on in PsTerminateSystemThread, with
// no instruction of the agent's after that at which it could be interrupted. The second goes on in
// ExFreePoolWithTag, and from there to PsTerminateSystemThread.
WINDOWS _Noreturn void AgentLeave(AGENT *Agent, u32 Stage) HIDDEN;
WINDOWS _Noreturn void AgentFreeAndLeave(AGENT *Agent) HIDDEN;

// What an agent does in each round of its thread.
void AgentWork(AGENT *Agent) HIDDEN;

#endif
