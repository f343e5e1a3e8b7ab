// The kernel proper: processors, traps, threads, waiting.

#ifndef VIGIL_KE_H
#define VIGIL_KE_H

#include "ntdef.h"
#include "offsets.h" // of the architecture: arch/*/include
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

#include "archke.h"

// The service descriptor: one for each table, the second for win32k's, empty.
typedef struct {
    const LONG *Base;
    PVOID Count;
    ULONG_PTR Limit;
    PVOID Number; // of arguments, in bytes: a table for each service, on x86
} KSERVICE_TABLE_DESCRIPTOR;
C_ASSERT(sizeof(KSERVICE_TABLE_DESCRIPTOR) == 4 * sizeof(PVOID));

extern KSERVICE_TABLE_DESCRIPTOR KeServiceDescriptorTable[2];
extern KSERVICE_TABLE_DESCRIPTOR KeServiceDescriptorTableShadow[2];
extern LONG KiServiceTable[SERVICE_COUNT];

// amd64.h's kin, for both architectures: what only the processor can say.
FORCEINLINE void KiEnableInterrupts(void)
{
    __asm__ volatile("sti" : : : "memory");
}

FORCEINLINE void KiDisableInterrupts(void)
{
    __asm__ volatile("cli" : : : "memory");
}

FORCEINLINE ULONG_PTR KiReadFlags(void)
{
    ULONG_PTR Flags;
    __asm__ volatile("pushf; pop %0" : "=r"(Flags) : : "memory");
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

FORCEINLINE void KeInvalidatePage(ULONG_PTR Address)
{
    __asm__ volatile("invlpg (%0)" : : "r"(Address) : "memory");
}

// CR3: where the page tables of the space in use begin.
FORCEINLINE ULONG_PTR KiReadRoot(void)
{
    ULONG_PTR Root;
    __asm__ volatile("mov %%cr3, %0" : "=r"(Root));
    return Root;
}

FORCEINLINE void KiWriteRoot(ULONG_PTR Root)
{
    __asm__ volatile("mov %0, %%cr3" : : "r"(Root) : "memory");
}

FORCEINLINE ULONG_PTR KiReadCr0(void)
{
    ULONG_PTR Value;
    __asm__ volatile("mov %%cr0, %0" : "=r"(Value));
    return Value;
}

FORCEINLINE void KiWriteCr0(ULONG_PTR Value)
{
    __asm__ volatile("mov %0, %%cr0" : : "r"(Value) : "memory");
}

FORCEINLINE ULONG_PTR KiReadCr4(void)
{
    ULONG_PTR Value;
    __asm__ volatile("mov %%cr4, %0" : "=r"(Value));
    return Value;
}

FORCEINLINE void KiWriteCr4(ULONG_PTR Value)
{
    __asm__ volatile("mov %0, %%cr4" : : "r"(Value) : "memory");
}

// startup.S, init.c
void KiSystemStartup(const BOOT_BLOCK *Block);
NORETURN void KiInitializeKernel(const BOOT_BLOCK *Block);
NORETURN void KiIdleLoop(void);

// trap.S, trap.c
extern UCHAR KiPageFault[];
extern UCHAR KiVectorStubs[]; // 16 bytes for each vector
extern UCHAR KiSystemServiceCopyStart[], KiSystemServiceCopyEnd[], KiSystemServiceCopyFault[];
void KiDispatchTrap(PKTRAP_FRAME Frame, ULONG Vector);
NORETURN void KiEnterUserMode(ULONG_PTR Ip, ULONG_PTR Sp, ULONG_PTR Argument);
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
void KeYieldProcessorThread(void);

// arch/*/processor.c, newthread.c
void KiSwitchState(PKTHREAD To); // what the processor holds for a thread beside its registers
void KiSetTeb(PKTHREAD Thread);  // of the thread that runs here
PVOID KiInitialKernelStack(PVOID InitialStack, PVOID Start, PVOID Context);
void KiInitializeStateSave(PKTHREAD Thread); // the x87 and SSE state, at the stack's top

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
