// Waiting: events, semaphores, delays.

#include "../include/ke.h"
#include "../include/shareddata.h"

static LIST_ENTRY KiTimerList = {&KiTimerList, &KiTimerList};

#define IS_SEMAPHORE(object) ((object)->Type == 5)

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
    ULONG64 Flags = KiAcquireDispatcherLock();
    LONG Old = Event->Header.SignalState;
    Event->Header.SignalState = 1;
    KiTestWaiters(&Event->Header);
    KiReleaseDispatcherLock(Flags);
    return Old;
}

LONG KeReleaseSemaphore(PKSEMAPHORE Semaphore, LONG Increment, LONG Adjustment, BOOLEAN Wait)
{
    (void)Increment;
    (void)Wait;
    ULONG64 Flags = KiAcquireDispatcherLock();
    LONG Old = Semaphore->Header.SignalState;
    Semaphore->Header.SignalState += Adjustment;
    KiTestWaiters(&Semaphore->Header);
    KiReleaseDispatcherLock(Flags);
    return Old;
}

// The interrupt time at which a wait ends: relative when negative, absolute
// system time when positive.
static ULONG64 KiDueTime(LONGLONG Interval)
{
    ULONG64 Now = KeQueryInterruptTime();
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

    ULONG64 Flags = KiAcquireDispatcherLock();
    if (Header->SignalState > 0) {
        if (Header->Type != NotificationEvent)
            Header->SignalState--;
    } else if (Timeout && Timeout->QuadPart == 0) {
        Status = STATUS_TIMEOUT;
    } else {
        Status = KiWait(Header, Timeout);
    }
    KiReleaseDispatcherLock(Flags);
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
    ULONG64 Flags = KiAcquireDispatcherLock();
    KiWait(NULL, Interval);
    KiReleaseDispatcherLock(Flags);
    return STATUS_SUCCESS;
}

// At every tick: ends the waits whose time has come.
void KiExpireTimers(ULONG64 Now)
{
    ULONG64 Flags = KiAcquireDispatcherLock();
    for (PLIST_ENTRY Entry = KiTimerList.Flink; Entry != &KiTimerList;) {
        PKTHREAD Thread = CONTAINING_RECORD(Entry, KTHREAD, TimerListEntry);
        Entry = Entry->Flink;
        if (Thread->DueTime <= Now)
            KiUnwaitThread(Thread, STATUS_TIMEOUT);
    }
    KiReleaseDispatcherLock(Flags);
}
