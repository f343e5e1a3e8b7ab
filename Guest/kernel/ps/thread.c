// Threads: their stacks, and how each begins and ends.

#include "../include/mm.h"
#include "../include/ps.h"
#include "../include/rtl.h"
#include "../include/shareddata.h"

#define THREAD_TAG 'erhT'

static void PspInitializeThread(PETHREAD Thread, PEPROCESS Process, const CHAR *Name,
                                PVOID StackLimit, PVOID StackBase)
{
    PKTHREAD Tcb = &Thread->Tcb;

    Tcb->Header.Type = 6;
    InitializeListHead(&Tcb->Header.WaitListHead);
    InitializeListHead(&Tcb->ApcState.ApcListHead[0]);
    InitializeListHead(&Tcb->ApcState.ApcListHead[1]);
    Tcb->StackLimit = StackLimit;
    Tcb->StackBase = StackBase;
    Tcb->ApcState.Process = &Process->Pcb;
    Tcb->Process = &Process->Pcb;
    Tcb->PreviousMode = KernelMode;
    Thread->Cid.UniqueProcess = Process->UniqueProcessId;
    RtlStringCopy(Thread->Name, sizeof Thread->Name, Name);
    KiInitializeStateSave(Tcb);
}

static void PspInsertThread(PETHREAD Thread, PEPROCESS Process)
{
    Thread->Cid.UniqueThread = (HANDLE)PspNextId();
    KIRQL Irql = KiAcquireDispatcherLock();
    InsertTailList(&Process->ThreadListHead, &Thread->ThreadListEntry);
    Process->ActiveThreads++;
    KiReleaseDispatcherLock(Irql);
}

// What a processor came up on becomes its idle thread. As on Windows it
// is on no process's list and has the identifier 0.
void PspAdoptIdleThread(PETHREAD Thread, PVOID StackLimit, PVOID StackBase)
{
    PKPRCB Prcb = KeGetCurrentPrcb();

    PspInitializeThread(Thread, PsInitialSystemProcess, "idle", StackLimit, StackBase);
    Thread->Tcb.MiscFlags = 1u << KTHREAD_SystemThreadBit;
    InitializeListHead(&Thread->ThreadListEntry);
    Thread->Tcb.State = Running;
    Prcb->CurrentThread = Prcb->IdleThread = &Thread->Tcb;
    KiSwitchState(&Thread->Tcb);
}

// Ended threads, linked through ThreadListEntry, under the dispatcher lock.
static LIST_ENTRY PspEndedThreads = {&PspEndedThreads, &PspEndedThreads};

// A thread on the list has been left by its processor: the lock under which it
// got there was released by the thread that came after it.
void PspReapThreads(void)
{
    for (;;) {
        PETHREAD Thread = NULL;
        KIRQL Irql = KiAcquireDispatcherLock();
        if (!IsListEmpty(&PspEndedThreads))
            Thread = CONTAINING_RECORD(RemoveHeadList(&PspEndedThreads), ETHREAD, ThreadListEntry);
        KiReleaseDispatcherLock(Irql);
        if (!Thread)
            return;
        MmDeleteKernelStack(Thread->Tcb.StackLimit);
        ExFreePoolWithTag(Thread, THREAD_TAG);
    }
}

static PETHREAD PspNewThread(PEPROCESS Process, const CHAR *Name, PKSTART_ROUTINE Start,
                             PVOID Context)
{
    PspReapThreads();
    PETHREAD Thread = ExAllocatePoolWithTag(NonPagedPoolNx, sizeof *Thread, THREAD_TAG);
    PUCHAR Stack = Thread ? MmCreateKernelStack() : NULL;
    if (!Stack) {
        ExFreePoolWithTag(Thread, THREAD_TAG);
        return NULL;
    }
    PspInitializeThread(Thread, Process, Name, Stack, Stack + KERNEL_STACK_SIZE);
    Thread->StartAddress = Start;
    Thread->Tcb.KernelStack = KiInitialKernelStack(Thread->Tcb.InitialStack, (PVOID)Start, Context);
    return Thread;
}

static void PspStartThread(PETHREAD Thread)
{
    KIRQL Irql = KiAcquireDispatcherLock();
    KiReadyThread(&Thread->Tcb, FALSE);
    KiReleaseDispatcherLock(Irql);
}

PETHREAD PspCreateThread(PEPROCESS Process, const CHAR *Name, PKSTART_ROUTINE Start, PVOID Context)
{
    PETHREAD Thread = PspNewThread(Process, Name, Start, Context);
    if (!Thread)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 5, 0, 0, 0);
    Thread->Tcb.MiscFlags = 1u << KTHREAD_SystemThreadBit;
    PspInsertThread(Thread, Process);
    PspStartThread(Thread);
    return Thread;
}

// There are no handles: where Windows gives one, and where it gives the client
// identifier, the thread's identifier is given. Always in the System process.
NTSTATUS PsCreateSystemThread(HANDLE *ThreadHandle, ULONG DesiredAccess, PVOID ObjectAttributes,
                              HANDLE ProcessHandle, CLIENT_ID *ClientId,
                              PKSTART_ROUTINE StartRoutine, PVOID StartContext)
{
    (void)DesiredAccess;
    (void)ObjectAttributes;
    (void)ProcessHandle;
    PETHREAD Thread = PspNewThread(PsInitialSystemProcess, "system", StartRoutine, StartContext);
    if (!Thread)
        return STATUS_NO_MEMORY;
    Thread->Tcb.MiscFlags = 1u << KTHREAD_SystemThreadBit;
    PspInsertThread(Thread, PsInitialSystemProcess);
    CLIENT_ID Cid = Thread->Cid; // once started it may end at any time
    PspStartThread(Thread);
    if (ThreadHandle)
        *ThreadHandle = Cid.UniqueThread;
    if (ClientId)
        *ClientId = Cid;
    return STATUS_SUCCESS;
}

// Returns only where it may not be called: from a thread with a user mode.
NTSTATUS PsTerminateSystemThread(NTSTATUS ExitStatus)
{
    (void)ExitStatus;
    if (!(KiCurrentThread()->MiscFlags >> KTHREAD_SystemThreadBit & 1))
        return STATUS_INVALID_PARAMETER;
    PspExitThread();
}

// The lock came with the switch to this thread.
void KiThreadEntry(PKSTART_ROUTINE Start, PVOID Context)
{
    KiReleaseDispatcherLock(PASSIVE_LEVEL);
    KiEnableInterrupts();
    Start(Context);
    PspExitThread();
}

static void PspUserThreadStartup(PVOID Context)
{
    PETHREAD Thread = (PETHREAD)KiCurrentThread();
    (void)Context;
    Thread->Tcb.PreviousMode = UserMode;
    KiEnterUserMode(Thread->UserIp, Thread->UserSp, (ULONG_PTR)PsGetCurrentProcess()->Peb);
}

#define USER_STACK_SIZE 0x4000
#define USER_STACK_DISTANCE 0x20000

PETHREAD PspCreateUserThread(PEPROCESS Process, ULONG Role)
{
    PETHREAD Thread = PspNewThread(Process, "user", PspUserThreadStartup, NULL);
    if (!Thread)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 5, 0, 0, 0);
    ULONG_PTR Limit = Process->NextUserStack;
    Process->NextUserStack += USER_STACK_DISTANCE;
    MmAllocateUserPages(Process->Pcb.DirectoryTableBase, Limit, USER_STACK_SIZE, MM_USER_RW);
    Thread->UserSp = PspInitialUserStack(Process, Limit + USER_STACK_SIZE);
    Thread->UserIp = (ULONG_PTR)Process->SectionBaseAddress;
    Thread->Role = Role;
    PspInsertThread(Thread, Process);
    Thread->Tcb.Teb = PspBuildTeb(Process, Thread->Cid, Limit + USER_STACK_SIZE, Limit);
    return Thread;
}

// The stack is the one being stood on: others reclaim it, and the object.
void PspExitThread(void)
{
    PETHREAD Thread = (PETHREAD)KiCurrentThread();
    KiAcquireDispatcherLock();
    RemoveEntryList(&Thread->ThreadListEntry);
    ((PEPROCESS)Thread->Tcb.Process)->ActiveThreads--;
    InsertTailList(&PspEndedThreads, &Thread->ThreadListEntry);
    Thread->Tcb.State = Terminated;
    KiSwapThread();
    __builtin_unreachable();
}
