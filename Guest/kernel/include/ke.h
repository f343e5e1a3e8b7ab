// The kernel proper: processors, traps, threads, waiting.

#ifndef VIGIL_KE_H
#define VIGIL_KE_H

#include "ntdef.h"
#include "offsets.h"
#include "../../common/bootblock.h"

#define PASSIVE_LEVEL 0
#define APC_LEVEL 1
#define DISPATCH_LEVEL 2
#define CLOCK_LEVEL 13
#define IPI_LEVEL 14
#define HIGH_LEVEL 15

typedef enum { KernelMode, UserMode } MODE;
typedef enum { Initialized, Ready, Running, Standby, Terminated, Waiting } KTHREAD_STATE;
typedef enum { NotificationEvent, SynchronizationEvent } EVENT_TYPE;

typedef struct {
    UCHAR Type; // 0 and 1: the two kinds of event; 5: semaphore; 3, 6: process, thread
    UCHAR Signalling, Size, Reserved1;
    volatile LONG SignalState;
    LIST_ENTRY WaitListHead;
} DISPATCHER_HEADER;

typedef struct {
    DISPATCHER_HEADER Header;
} KEVENT, *PKEVENT;

typedef struct {
    DISPATCHER_HEADER Header;
    LONG Limit;
} KSEMAPHORE, *PKSEMAPHORE;

typedef struct {
    DISPATCHER_HEADER Header;            // 0x000
    LIST_ENTRY ProfileListHead;          // 0x018
    ULONG_PTR DirectoryTableBase;        // 0x028
    LIST_ENTRY ThreadListHead;           // 0x030
    UCHAR Reserved040[0x438 - 0x040];
} KPROCESS, *PKPROCESS;
FIELD_AT(KPROCESS, DirectoryTableBase, KPROCESS_DirectoryTableBase);

typedef struct _KTRAP_FRAME {
    ULONG64 P1Home, P2Home, P3Home, P4Home, P5; // 0x000
    CHAR PreviousMode;                          // 0x028
    UCHAR PreviousIrql, FaultIndicator, ExceptionActive;
    ULONG MxCsr;                                // 0x02C
    ULONG64 Rax, Rcx, Rdx, R8, R9, R10, R11;    // 0x030
    ULONG64 GsBase;                             // 0x068
    ULONG64 Xmm[12];                            // 0x070
    ULONG64 FaultAddress;                       // 0x0D0
    ULONG64 DebugState[12];                     // 0x0D8
    ULONG64 TrapFrame;                          // 0x138
    ULONG64 Rbx, Rdi, Rsi, Rbp;                 // 0x140
    ULONG64 ErrorCode, Rip;                     // 0x160
    USHORT SegCs;                               // 0x170
    USHORT Fill0[3];
    ULONG EFlags, Fill1;                        // 0x178
    ULONG64 Rsp;                                // 0x180
    USHORT SegSs, Fill2[3];                     // 0x188
} KTRAP_FRAME, *PKTRAP_FRAME;
FIELD_AT(KTRAP_FRAME, PreviousMode, KTRAP_FRAME_PreviousMode);
FIELD_AT(KTRAP_FRAME, FaultAddress, KTRAP_FRAME_FaultAddress);
FIELD_AT(KTRAP_FRAME, TrapFrame, KTRAP_FRAME_TrapFrame);
FIELD_AT(KTRAP_FRAME, Rbx, KTRAP_FRAME_Rbx);
FIELD_AT(KTRAP_FRAME, Rip, KTRAP_FRAME_Rip);
FIELD_AT(KTRAP_FRAME, EFlags, KTRAP_FRAME_EFlags);
C_ASSERT(sizeof(KTRAP_FRAME) == KTRAP_FRAME_Size);

typedef struct _KTHREAD {
    DISPATCHER_HEADER Header;      // 0x000
    PVOID SListFaultAddress;       // 0x018
    ULONG64 QuantumTarget;         // 0x020, in clock ticks
    PVOID InitialStack;            // 0x028
    PVOID StackLimit, StackBase;   // 0x030
    ULONG64 ThreadLock;            // 0x040
    ULONG64 CycleTime;             // 0x048
    ULONG CurrentRunTime, ExpectedRunTime;
    PVOID KernelStack;             // 0x058
    PVOID StateSaveArea;           // 0x060
    PVOID SchedulingGroup;         // 0x068
    UCHAR WaitRegister, RunningNow, Alerted[2];
    ULONG MiscFlags;               // 0x074
    ULONG ThreadFlags;             // 0x078
    ULONG Reserved07C;
    ULONG SystemCallNumber;        // 0x080
    ULONG ReadyTime;
    PVOID FirstArgument;           // 0x088
    PKTRAP_FRAME TrapFrame;        // 0x090
    struct {
        LIST_ENTRY ApcListHead[2]; // 0x098
        PKPROCESS Process;         // 0x0B8
        UCHAR InProgressFlags, KernelApcPending, UserApcPending;
        SCHAR Priority;            // 0x0C3
        ULONG UserIdealProcessor;
    } ApcState;
    LONG_PTR WaitStatus;           // 0x0C8
    DISPATCHER_HEADER *WaitObject; // 0x0D0
    LIST_ENTRY WaitListEntry;      // 0x0D8, in the ready list or an object's
    PVOID Queue;                   // 0x0E8
    PVOID Teb;                     // 0x0F0
    ULONG64 DueTime;               // 0x0F8, interrupt time; 0: none
    LIST_ENTRY TimerListEntry;     // 0x100
    UCHAR Reserved110[0x184 - 0x110];
    UCHAR State;                   // 0x184
    UCHAR Reserved185[0x220 - 0x185];
    PKPROCESS Process;             // 0x220
    UCHAR Reserved228[0x232 - 0x228];
    CHAR PreviousMode;             // 0x232
    UCHAR Reserved233[0x430 - 0x233];
} KTHREAD, *PKTHREAD;
FIELD_AT(KTHREAD, InitialStack, KTHREAD_InitialStack);
FIELD_AT(KTHREAD, StackLimit, KTHREAD_StackLimit);
FIELD_AT(KTHREAD, StackBase, KTHREAD_StackBase);
FIELD_AT(KTHREAD, KernelStack, KTHREAD_KernelStack);
FIELD_AT(KTHREAD, StateSaveArea, KTHREAD_StateSaveArea);
FIELD_AT(KTHREAD, MiscFlags, KTHREAD_MiscFlags);
FIELD_AT(KTHREAD, ThreadFlags, KTHREAD_ThreadFlags);
FIELD_AT(KTHREAD, TrapFrame, KTHREAD_TrapFrame);
FIELD_AT(KTHREAD, ApcState, KTHREAD_ApcState);
FIELD_AT(KTHREAD, ApcState.Process, KTHREAD_ApcState_Process);
FIELD_AT(KTHREAD, WaitListEntry, KTHREAD_WaitListEntry);
FIELD_AT(KTHREAD, Teb, KTHREAD_Teb);
FIELD_AT(KTHREAD, State, KTHREAD_State);
FIELD_AT(KTHREAD, Process, KTHREAD_Process);
FIELD_AT(KTHREAD, PreviousMode, KTHREAD_PreviousMode);

// Intel SDM volume 3A, section 8.7: the 64-bit task-state segment.
typedef struct {
    ULONG Reserved0;
    ULONG64 Rsp[3];
    ULONG64 Reserved1;
    ULONG64 Ist[7];
    ULONG64 Reserved2;
    USHORT Reserved3, IoMapBase;
} __attribute__((packed)) KTSS64;
C_ASSERT(sizeof(KTSS64) == 104);

typedef struct {
    USHORT OffsetLow, Selector;
    UCHAR Ist, Attributes;
    USHORT OffsetMiddle;
    ULONG OffsetHigh, Reserved;
} KIDTENTRY64;
C_ASSERT(sizeof(KIDTENTRY64) == 16);

typedef struct {
    ULONG MxCsr;                       // 0x000
    UCHAR LegacyNumber, ReservedMustBeZero, InterruptRequest, IdleHalt;
    PKTHREAD CurrentThread;            // 0x008
    PKTHREAD NextThread;               // 0x010
    PKTHREAD IdleThread;               // 0x018
    UCHAR NestingLevel, ClockOwner, Pending[2];
    ULONG Number;                      // 0x024
    ULONG64 RspBase;                   // 0x028
    ULONG64 PrcbLock;                  // 0x030
    volatile UCHAR QuantumEnd;         // ours, from 0x038 on: it shall look for another thread
    UCHAR ApicId;
    volatile ULONG DpcRequests;        // KI_DPC_…
    UCHAR Reserved040[0x700 - 0x040];
} KPRCB, *PKPRCB;
FIELD_AT(KPRCB, CurrentThread, KPRCB_CurrentThread);
FIELD_AT(KPRCB, IdleThread, KPRCB_IdleThread);
FIELD_AT(KPRCB, Number, KPRCB_Number);
FIELD_AT(KPRCB, RspBase, KPRCB_RspBase);

typedef struct _KPCR {
    PVOID GdtBase;           // 0x000
    KTSS64 *TssBase;         // 0x008
    ULONG64 UserRsp;         // 0x010
    struct _KPCR *Self;      // 0x018
    PKPRCB CurrentPrcb;      // 0x020
    PVOID LockArray;         // 0x028
    PVOID Used_Self;         // 0x030
    KIDTENTRY64 *IdtBase;    // 0x038
    ULONG64 Unused[2];
    KIRQL Irql;              // 0x050
    UCHAR Reserved051[0x60 - 0x51];
    USHORT MajorVersion, MinorVersion; // 0x060
    UCHAR Reserved064[0x180 - 0x064];
    KPRCB Prcb;              // 0x180
} KPCR, *PKPCR;
FIELD_AT(KPCR, UserRsp, KPCR_UserRsp);
FIELD_AT(KPCR, Self, KPCR_Self);
FIELD_AT(KPCR, CurrentPrcb, KPCR_CurrentPrcb);
FIELD_AT(KPCR, IdtBase, KPCR_IdtBase);
FIELD_AT(KPCR, Irql, KPCR_Irql);
FIELD_AT(KPCR, Prcb, KPCR_Prcb);

// The service descriptor: one for each table, the second for win32k's, empty.
typedef struct {
    const LONG *Base;
    PVOID Count;
    ULONG64 Limit;
    PVOID Number;
} KSERVICE_TABLE_DESCRIPTOR;
C_ASSERT(sizeof(KSERVICE_TABLE_DESCRIPTOR) == 0x20);

extern KSERVICE_TABLE_DESCRIPTOR KeServiceDescriptorTable[2];
extern KSERVICE_TABLE_DESCRIPTOR KeServiceDescriptorTableShadow[2];
extern LONG KiServiceTable[SERVICE_COUNT];

// amd64.h's kin: what only the processor can say.
FORCEINLINE PKPRCB KeGetCurrentPrcb(void)
{
    PKPRCB Prcb;
    __asm__ volatile("movq %%gs:%c1, %0" : "=r"(Prcb) : "i"(KPCR_CurrentPrcb));
    return Prcb;
}

FORCEINLINE PKTHREAD KiCurrentThread(void)
{
    PKTHREAD Thread;
    __asm__ volatile("movq %%gs:%c1, %0" : "=r"(Thread) : "i"(PCR_CurrentThread));
    return Thread;
}

FORCEINLINE KIRQL KeGetCurrentIrql(void)
{
    ULONG64 Level;
    __asm__ volatile("movq %%cr8, %0" : "=r"(Level));
    return (KIRQL)Level;
}

// IRQL is CR8, as on Windows x64: an interrupt's level is the upper half of its
// vector. Those of the 8259, which the local APIC passes on, are not held back
// by it; they come at any level, and touch nothing that a lock guards.
FORCEINLINE void KiWriteCr8(ULONG64 Level)
{
    __asm__ volatile("movq %0, %%cr8" : : "r"(Level) : "memory");
}

FORCEINLINE void KiEnableInterrupts(void)
{
    __asm__ volatile("sti" : : : "memory");
}

FORCEINLINE void KiDisableInterrupts(void)
{
    __asm__ volatile("cli" : : : "memory");
}

FORCEINLINE ULONG64 KiReadFlags(void)
{
    ULONG64 Flags;
    __asm__ volatile("pushfq; popq %0" : "=r"(Flags) : : "memory");
    return Flags;
}

FORCEINLINE void KiWriteMsr(ULONG Register, ULONG64 Value)
{
    __asm__ volatile("wrmsr" : : "c"(Register), "a"((ULONG)Value), "d"((ULONG)(Value >> 32)) : "memory");
}

FORCEINLINE ULONG64 KiReadMsr(ULONG Register)
{
    ULONG Low, High;
    __asm__ volatile("rdmsr" : "=a"(Low), "=d"(High) : "c"(Register));
    return (ULONG64)High << 32 | Low;
}

FORCEINLINE void KeInvalidatePage(ULONG64 Address)
{
    __asm__ volatile("invlpg (%0)" : : "r"(Address) : "memory");
}

// startup.S, init.c
void KiSystemStartup(const BOOT_BLOCK *Block);
NORETURN void KiInitializeKernel(const BOOT_BLOCK *Block);
NORETURN void KiIdleLoop(void);

// trap.S, trap.c
extern UCHAR KiVectorStubs[]; // 16 bytes for each vector
extern UCHAR KiSystemServiceCopyStart[], KiSystemServiceCopyEnd[], KiSystemServiceCopyFault[];
void KiDispatchTrap(PKTRAP_FRAME Frame, ULONG Vector);
void KiSystemCall64(void);
void KiSystemCall32(void);
NORETURN void KiEnterUserMode(ULONG64 Rip, ULONG64 Rsp, ULONG64 Argument);
void KeCompactServiceTable(void);
extern volatile ULONG64 KeSystemCalls;

// spinlock.c: held at DISPATCH_LEVEL, where nothing takes the processor away.
typedef volatile ULONG_PTR KSPIN_LOCK, *PKSPIN_LOCK;
KIRQL KeRaiseIrqlToDpcLevel(void);
void KeLowerIrql(KIRQL Irql);
KIRQL KeAcquireSpinLockRaiseToDpc(PKSPIN_LOCK Lock); // the level before
void KeReleaseSpinLock(PKSPIN_LOCK Lock, KIRQL Irql);

// dispatcher.c, wait.c: the dispatcher lock is held from Acquire to Release; a
// thread switch happens inside.
KIRQL KiAcquireDispatcherLock(void);
void KiReleaseDispatcherLock(KIRQL Irql);
void KiSwapThread(void);
void KiReadyThread(PKTHREAD Thread, BOOLEAN First);
void KiUnwaitThread(PKTHREAD Thread, LONG_PTR Status);
void KiExpireTimers(ULONG64 Now);
extern volatile ULONG64 KiEarliestTimer; // interrupt time; ~0: none
void KiDispatchInterrupt(void);
void KiCheckQuantum(void);
void KiSwapContext(PKTHREAD From, PKTHREAD To);
void KiThreadStartup(void);
void KiThreadEntry(void (*Start)(PVOID), PVOID Context);
void KiSwitchState(PKTHREAD To);
void KeYieldProcessorThread(void);
extern volatile ULONG64 KiContextSwitches;

void KeInitializeEvent(PKEVENT Event, EVENT_TYPE Type, BOOLEAN State);
LONG KeResetEvent(PKEVENT Event);
LONG KeSetEvent(PKEVENT Event, LONG Increment, BOOLEAN Wait);
void KeInitializeSemaphore(PKSEMAPHORE Semaphore, LONG Count, LONG Limit);
LONG KeReleaseSemaphore(PKSEMAPHORE Semaphore, LONG Increment, LONG Adjustment, BOOLEAN Wait);
NTSTATUS KeWaitForSingleObject(PVOID Object, ULONG Reason, KPROCESSOR_MODE Mode,
                               BOOLEAN Alertable, PLARGE_INTEGER Timeout);
NTSTATUS KeDelayExecutionThread(KPROCESSOR_MODE Mode, BOOLEAN Alertable, PLARGE_INTEGER Interval);
NTSTATUS KiDelayExecutionThread(KPROCESSOR_MODE Mode, BOOLEAN Alertable, PLARGE_INTEGER Interval);

// clock.c
void KeUpdateSystemTime(ULONG64 Elapsed);
void KiInitializeSharedData(void);
ULONG64 KiQueryWaitTime(void); // what waits are measured by
void KeAdvanceAfterSleep(ULONG64 Slept);
ULONG64 KeQueryInterruptTime(void);
ULONG64 KeQueryUnbiasedInterruptTime(void);

// bugcheck.c
NORETURN void KeBugCheckEx(ULONG Code, ULONG_PTR P1, ULONG_PTR P2, ULONG_PTR P3, ULONG_PTR P4);
NORETURN void KeBugCheck(ULONG Code);
NORETURN void KeBugCheck2(ULONG Code, ULONG_PTR P1, ULONG_PTR P2, ULONG_PTR P3, ULONG_PTR P4,
                          PKTRAP_FRAME Frame);
void KiFreezeIfBugCheck(void); // in the NMI that stops the others
#define IRQL_NOT_LESS_OR_EQUAL 0x0A
#define MEMORY_MANAGEMENT 0x1A
#define INTERNAL_POWER_ERROR 0xA0
#define BAD_POOL_CALLER 0xC2
#define CRITICAL_STRUCTURE_CORRUPTION 0x109
#define KMODE_EXCEPTION_NOT_HANDLED 0x1E
#define PAGE_FAULT_IN_NONPAGED_AREA 0x50
#define PHASE0_INITIALIZATION_FAILED 0x31
#define UNEXPECTED_KERNEL_MODE_TRAP 0x7F
#define NMI_HARDWARE_FAILURE 0x80
#define MANUALLY_INITIATED_CRASH 0xE2

#endif
