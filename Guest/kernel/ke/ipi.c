// What processors ask of one another: to look for another thread, and to carry
// out a function all together, a flush of translations above all.

#include "../include/hal.h"
#include "../include/mp.h"

// Vector 2Fh waits in the local APIC until the level is below DISPATCH_LEVEL.
void KiRequestDispatch(PKPRCB Prcb, ULONG Requests)
{
    __atomic_fetch_or(&Prcb->DpcRequests, Requests, __ATOMIC_SEQ_CST);
    HalpSendInterrupt(Prcb->ApicId, DISPATCH_VECTOR);
}

static KSPIN_LOCK KiCallLock;
static KIPI_BROADCAST_WORKER *KiCallFunction;
static ULONG_PTR KiCallArgument;
static volatile LONG KiCallsPending;

void KiIpiInterrupt(void)
{
    KiCallFunction(KiCallArgument);
    __atomic_sub_fetch(&KiCallsPending, 1, __ATOMIC_SEQ_CST);
}

// On every processor, at IPI_LEVEL; returns when all have done it. One call at
// a time: who waits for the lock does so with interrupts on and takes part in
// the call of him who has it.
ULONG_PTR KeIpiGenericCall(KIPI_BROADCAST_WORKER *Function, ULONG_PTR Argument)
{
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&KiCallLock);
    ULONG Self = KeGetCurrentPrcb()->Number;

    KiCallFunction = Function;
    KiCallArgument = Argument;
    __atomic_store_n(&KiCallsPending, KeNumberProcessors - 1, __ATOMIC_SEQ_CST);
    for (ULONG i = 0; i < (ULONG)KeNumberProcessors; i++) {
        if (i != Self)
            HalpSendInterrupt(KiProcessors[i]->Pcr.Prcb.ApicId, IPI_VECTOR);
    }
    KiSetIrql(IPI_LEVEL);
    ULONG_PTR Result = Function(Argument);
    KiSetIrql(DISPATCH_LEVEL);
    while (__atomic_load_n(&KiCallsPending, __ATOMIC_SEQ_CST))
        __builtin_ia32_pause();
    KeReleaseSpinLock(&KiCallLock, Irql);
    return Result;
}

static ULONG_PTR KiFlushSingle(ULONG_PTR Address)
{
    KeInvalidatePage(Address);
    return 0;
}

// Nothing is mapped global: a load of CR3 forgets everything.
static ULONG_PTR KiFlushAll(ULONG_PTR Unused)
{
    (void)Unused;
    KiWriteRoot(KiReadRoot());
    return 0;
}

void KeFlushSingleTb(ULONG_PTR Address)
{
    KeIpiGenericCall(KiFlushSingle, Address);
}

void KeFlushEntireTb(void)
{
    KeIpiGenericCall(KiFlushAll, 0);
}
