// Commands that may block are carried out by other threads, so that the
// console goes on answering: kernel workers, and the threads of the two
// programs, which fetch their orders with the private service NtWaitForCommand.

#include "../include/console.h"
#include "../include/mm.h"
#include "../include/nt.h"
#include "../include/po.h"
#include "../include/ps.h"
#include "../include/rtl.h"

#define ITEMS 32
#define KERNEL_WORKERS 4
#define BUSY_CALLS 1000

typedef struct {
    volatile LONG InUse;
    LIST_ENTRY Link;
    WORK_KIND Kind;
    CONSOLE_TAG Tag;
    ULONG64 Arguments[3];
} WORK_ITEM;

static WORK_ITEM ConItems[ITEMS];
static LIST_ENTRY ConQueues[WorkRoles];
static KSEMAPHORE ConQueued[WorkRoles];
static KEVENT ConBusyEvent;

BOOLEAN ConQueueWork(WORK_ROLE Role, WORK_KIND Kind, const CONSOLE_TAG *Tag, ULONG64 A,
                     ULONG64 B, ULONG64 C)
{
    for (ULONG i = 0; i < ITEMS; i++) {
        WORK_ITEM *Item = &ConItems[i];
        if (__atomic_exchange_n(&Item->InUse, 1, __ATOMIC_SEQ_CST))
            continue;
        Item->Kind = Kind;
        Item->Tag = *Tag;
        Item->Arguments[0] = A;
        Item->Arguments[1] = B;
        Item->Arguments[2] = C;
        KIRQL Irql = KiAcquireDispatcherLock();
        InsertTailList(&ConQueues[Role], &Item->Link);
        KiReleaseDispatcherLock(Irql);
        KeReleaseSemaphore(&ConQueued[Role], 0, 1, FALSE);
        return TRUE;
    }
    return FALSE;
}

static WORK_ITEM *ConTakeWork(WORK_ROLE Role)
{
    KeWaitForSingleObject(&ConQueued[Role], 0, KernelMode, FALSE, NULL);
    KIRQL Irql = KiAcquireDispatcherLock();
    WORK_ITEM *Item = CONTAINING_RECORD(RemoveHeadList(&ConQueues[Role]), WORK_ITEM, Link);
    KiReleaseDispatcherLock(Irql);
    return Item;
}

// common/checkedcall-*.inc
extern ULONG64 CheckedCall(PVOID Function, ULONG_PTR A, ULONG_PTR B, ULONG_PTR C);

static void ConFinishWork(WORK_ITEM *Item, ULONG64 Result)
{
    CONSOLE_TAG Tag = Item->Tag;
    WORK_KIND Kind = Item->Kind;
    ULONG64 Rounds = Item->Arguments[0];
    __atomic_store_n(&Item->InUse, 0, __ATOMIC_SEQ_CST);
    if (Kind == WorkLoop)
        ConAnswer(&Tag, "ok calls=%llu", Result);
    else if (Kind == WorkRemap)
        ConAnswer(&Tag, "ok rounds=%llu time=%llu", Rounds, Result);
    else if (Result >> 32)
        ConAnswer(&Tag, "error registers mask=0x%x", (ULONG)(Result >> 32));
    else
        ConAnswer(&Tag, "ok status=0x%08x", (ULONG)Result);
}

// The thread ends with a command unfinished: the command has its answer still.
void ConAbandonWork(PETHREAD Thread)
{
    WORK_ITEM *Item = Thread->Work;
    if (!Item)
        return;
    CONSOLE_TAG Tag = Item->Tag;
    Thread->Work = NULL;
    __atomic_store_n(&Item->InUse, 0, __ATOMIC_SEQ_CST);
    ConAnswer(&Tag, "error the thread ended");
}

static void ConKernelWorker(PVOID Context)
{
    ULONG_PTR Page = MmReserveSystemPages(PAGE_SIZE);
    (void)Context;
    for (;;) {
        WORK_ITEM *Item = ConTakeWork(WorkKernel);
        if (Item->Kind == WorkRemap) {
            ConFinishWork(Item, ConRemapPage(Page, Item->Arguments[0]));
            continue;
        }
        PVOID Function = Item->Kind == WorkPowerDirect ? (PVOID)NtSetSystemPowerState
                                                       : (PVOID)ZwSetSystemPowerState;
        ConFinishWork(Item, CheckedCall(Function, WITH_UNDEFINED_UPPER_HALF(Item->Arguments[0]),
                                        WITH_UNDEFINED_UPPER_HALF(Item->Arguments[1]),
                                        WITH_UNDEFINED_UPPER_HALF(Item->Arguments[2])));
    }
}

void ConInitializeWork(void)
{
    KeInitializeEvent(&ConBusyEvent, NotificationEvent, FALSE);
    for (ULONG i = 0; i < WorkRoles; i++) {
        InitializeListHead(&ConQueues[i]);
        KeInitializeSemaphore(&ConQueued[i], 0, ITEMS);
    }
    for (ULONG i = 0; i < KERNEL_WORKERS; i++)
        PspCreateThread(PsInitialSystemProcess, "worker", ConKernelWorker, NULL);
}

void ConSetBusy(BOOLEAN Busy)
{
    if (Busy)
        KeSetEvent(&ConBusyEvent, 0, FALSE);
    else
        KeResetEvent(&ConBusyEvent);
}

// From ring 3: hands back the result of the last command, waits for the next.
NTSTATUS NtWaitForCommand(USER_COMMAND *Command, const ULONG64 *Result)
{
    PETHREAD Thread = (PETHREAD)KiCurrentThread();
    USER_COMMAND Next = {0};

    if (Thread->Tcb.PreviousMode != UserMode ||
        !MmIsUserRangeValid(PsGetCurrentProcess()->Pcb.DirectoryTableBase, (ULONG_PTR)Command,
                            sizeof *Command, TRUE) ||
        !MmIsUserRangeValid(PsGetCurrentProcess()->Pcb.DirectoryTableBase, (ULONG_PTR)Result,
                            sizeof *Result, FALSE))
        return STATUS_INVALID_PARAMETER;

    if (Thread->Role == WorkBusy) {
        KeWaitForSingleObject(&ConBusyEvent, 0, UserMode, FALSE, NULL);
        Next.kind = USER_COMMAND_LOOP;
        Next.arguments[0] = BUSY_CALLS;
    } else {
        if (Thread->Work)
            ConFinishWork(Thread->Work, *Result);
        Thread->Work = NULL;
        WORK_ITEM *Item = ConTakeWork(Thread->Role);
        Thread->Work = Item;
        Next.kind = Item->Kind == WorkLoop             ? USER_COMMAND_LOOP
                    : Item->Kind == WorkPowerInterrupt ? USER_COMMAND_POWER_INTERRUPT
                                                       : USER_COMMAND_POWER;
        RtlCopyMemory(Next.arguments, Item->Arguments, sizeof Next.arguments);
    }
    RtlCopyMemory(Command, &Next, sizeof Next);
    return STATUS_SUCCESS;
}
