// Waiting: events, semaphores, delays.

#include "../include/ke.h"
#include "../include/shareddata.h"

static LIST_ENTRY KiTimerList = {&KiTimerList, &KiTimerList};

volatile ULONG64 KiEarliestTimer = ~0ull;

static void KiInitializeHeader(DISPATCHER_HEADER *Header, UCHAR Type, LONG State)
{
    Header->Type = Type;
    Header->SignalState = State;
    InitializeListHead(&Header->WaitListHead);
}

void KeInitializeEvent(PKEVENT Event, EVENT_TYPE Type, BOOLEAN State)
{
    KiInitializeHeader(&Event->Header, (UCHAR)Type, State);
}

void KeInitializeSemaphore(PKSEMAPHORE Semaphore, LONG Count, LONG Limit)
{
    KiInitializeHeader(&Semaphore->Header, 5, Count);
    Semaphore->Limit = Limit;
}

// Takes a thread out of its wait. The dispatcher lock is held.
void KiUnwaitThread(PKTHREAD Thread, LONG_PTR Status)
{
    if (Thread->WaitObject)
        RemoveEntryList(&Thread->WaitListEntry);
    if (Thread->DueTime)
        RemoveEntryList(&Thread->TimerListEntry);
    Thread->WaitObject = NULL;
    Thread->DueTime = 0;
    Thread->WaitStatus = Status;
    KiReadyThread(Thread, TRUE);
}

// Wakes those for whom the object's signal suffices. The lock is held.
static void KiTestWaiters(DISPATCHER_HEADER *Header)
{
    while (Header->SignalState > 0 && !IsListEmpty(&Header->WaitListHead)) {
        if (Header->Type != NotificationEvent)
            Header->SignalState--;
        KiUnwaitThread(CONTAINING_RECORD(Header->WaitListHead.Flink, KTHREAD, WaitListEntry),
                       STATUS_SUCCESS);
    }
}

LONG KeSetEvent(PKEVENT Event, LONG Increment, BOOLEAN Wait)
{
    (void)Increment;
    (void)Wait;
    KIRQL Irql = KiAcquireDispatcherLock();
    LONG Old = Event->Header.SignalState;
    Event->Header.SignalState = 1;
    KiTestWaiters(&Event->Header);
    KiReleaseDispatcherLock(Irql);
    return Old;
}

LONG KeResetEvent(PKEVENT Event)
{
    KIRQL Irql = KiAcquireDispatcherLock();
    LONG Old = Event->Header.SignalState;
    Event->Header.SignalState = 0;
    KiReleaseDispatcherLock(Irql);
    return Old;
}

LONG KeReleaseSemaphore(PKSEMAPHORE Semaphore, LONG Increment, LONG Adjustment, BOOLEAN Wait)
{
    (void)Increment;
    (void)Wait;
    KIRQL Irql = KiAcquireDispatcherLock();
    LONG Old = Semaphore->Header.SignalState;
    Semaphore->Header.SignalState += Adjustment;
    KiTestWaiters(&Semaphore->Header);
    KiReleaseDispatcherLock(Irql);
    return Old;
}

// The interrupt time, less its bias, at which a wait ends: relative when negative, absolute
// system time when positive.
static ULONG64 KiDueTime(LONGLONG Interval)
{
    ULONG64 Now = KiQueryWaitTime();
    if (Interval < 0)
        return Now + (ULONG64)-Interval;
    ULONG64 System = (ULONG64)(ULONG)SharedUserData->SystemTime.High1Time << 32 |
                     SharedUserData->SystemTime.LowPart;
    return (ULONG64)Interval > System ? Now + ((ULONG64)Interval - System) : Now;
}

// Puts the current thread to sleep; the lock is held, before and after.
static NTSTATUS KiWait(DISPATCHER_HEADER *Object, PLARGE_INTEGER Timeout)
{
    PKTHREAD Thread = KiCurrentThread();

    Thread->State = Waiting;
    Thread->WaitObject = Object;
    if (Object)
        InsertTailList(&Object->WaitListHead, &Thread->WaitListEntry);
    Thread->DueTime = 0;
    if (Timeout) {
        Thread->DueTime = KiDueTime(Timeout->QuadPart);
        InsertTailList(&KiTimerList, &Thread->TimerListEntry);
        if (Thread->DueTime < KiEarliestTimer)
            KiEarliestTimer = Thread->DueTime;
    }
    KiSwapThread();
    return (NTSTATUS)Thread->WaitStatus;
}

NTSTATUS KeWaitForSingleObject(PVOID Object, ULONG Reason, KPROCESSOR_MODE Mode,
                               BOOLEAN Alertable, PLARGE_INTEGER Timeout)
{
    DISPATCHER_HEADER *Header = Object;
    NTSTATUS Status = STATUS_SUCCESS;
    (void)Reason;
    (void)Mode;
    (void)Alertable;

    KIRQL Irql = KiAcquireDispatcherLock();
    if (Header->SignalState > 0) {
        if (Header->Type != NotificationEvent)
            Header->SignalState--;
    } else if (Timeout && Timeout->QuadPart == 0) {
        Status = STATUS_TIMEOUT;
    } else {
        Status = KiWait(Header, Timeout);
    }
    KiReleaseDispatcherLock(Irql);
    return Status;
}

NTSTATUS KiDelayExecutionThread(KPROCESSOR_MODE Mode, BOOLEAN Alertable, PLARGE_INTEGER Interval)
{
    (void)Mode;
    (void)Alertable; // nothing ever alerts a thread here
    if (KeGetCurrentIrql() >= DISPATCH_LEVEL)
        KeBugCheckEx(IRQL_NOT_LESS_OR_EQUAL, 0, KeGetCurrentIrql(), 0,
                     (ULONG_PTR)KeDelayExecutionThread);
    if (Interval->QuadPart == 0) {
        KeYieldProcessorThread();
        return STATUS_SUCCESS;
    }
    KIRQL Irql = KiAcquireDispatcherLock();
    KiWait(NULL, Interval);
    KiReleaseDispatcherLock(Irql);
    return STATUS_SUCCESS;
}

// Ends the waits whose time has come. At DISPATCH_LEVEL.
void KiExpireTimers(ULONG64 Now)
{
    KIRQL Irql = KiAcquireDispatcherLock();
    ULONG64 Earliest = ~0ull;
    for (PLIST_ENTRY Entry = KiTimerList.Flink; Entry != &KiTimerList;) {
        PKTHREAD Thread = CONTAINING_RECORD(Entry, KTHREAD, TimerListEntry);
        Entry = Entry->Flink;
        if (Thread->DueTime <= Now)
            KiUnwaitThread(Thread, STATUS_TIMEOUT);
        else if (Thread->DueTime < Earliest)
            Earliest = Thread->DueTime;
    }
    KiEarliestTimer = Earliest;
    KiReleaseDispatcherLock(Irql);
}
