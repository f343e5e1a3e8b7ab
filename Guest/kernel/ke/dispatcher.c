// Which thread runs: one ready list for all processors, round robin, preemptive.
// One lock guards all of it and is held across the switch; the thread switched
// to releases it. A thread on the list is therefore never one that some processor
// still stands on.

#include "../include/hal.h"
#include "../include/mp.h"
#include "../include/shareddata.h"

#define QUANTUM_TICKS 4

static LIST_ENTRY KiReadyList = {&KiReadyList, &KiReadyList};
static KSPIN_LOCK KiDispatcherLock;
volatile ULONG64 KiContextSwitches;

KIRQL KiAcquireDispatcherLock(void)
{
    return KeAcquireSpinLockRaiseToDpc(&KiDispatcherLock);
}

void KiReleaseDispatcherLock(KIRQL Irql)
{
    KeReleaseSpinLock(&KiDispatcherLock, Irql);
}

// Has a processor look at the ready list: an idle one if there is one that was
// not yet told, else this one, if it shall be interrupted for it.
static void KiOfferThread(BOOLEAN Preempt)
{
    PKPRCB Target = Preempt ? KeGetCurrentPrcb() : NULL;
    for (ULONG i = 0; i < (ULONG)KeNumberProcessors; i++) {
        PKPRCB Prcb = &KiProcessors[i]->Pcr.Prcb;
        if (Prcb->CurrentThread == Prcb->IdleThread && !Prcb->QuantumEnd) {
            Target = Prcb;
            break;
        }
    }
    if (!Target)
        return;
    Target->QuantumEnd = TRUE;
    KiRequestDispatch(Target, 0);
}

// `First`: a thread that has waited goes before those that computed.
void KiReadyThread(PKTHREAD Thread, BOOLEAN First)
{
    Thread->State = Ready;
    if (First)
        InsertHeadList(&KiReadyList, &Thread->WaitListEntry);
    else
        InsertTailList(&KiReadyList, &Thread->WaitListEntry);
    KiOfferThread(First);
}

// Gives the processor to the next ready thread, else to the idle one. The
// caller holds the dispatcher lock and has put the current thread where it
// belongs: into the ready list, on a wait list, or nowhere.
void KiSwapThread(void)
{
    PKPRCB Prcb = KeGetCurrentPrcb();
    PKTHREAD From = Prcb->CurrentThread;
    PKTHREAD To = Prcb->IdleThread;

    if (!IsListEmpty(&KiReadyList))
        To = CONTAINING_RECORD(RemoveHeadList(&KiReadyList), KTHREAD, WaitListEntry);
    To->State = Running;
    To->QuantumTarget = SharedUserData->TickCount.LowPart + QUANTUM_TICKS;
    Prcb->QuantumEnd = FALSE;
    if (To == From)
        return;
    KiContextSwitches++;
    // No interrupt while the processor is between two threads. This thread may
    // come back on another processor.
    KiDisableInterrupts();
    KiSwitchState(To);
    KiSwapContext(From, To);
    KiEnableInterrupts();
}

// At every tick of this processor's timer.
void KiCheckQuantum(void)
{
    PKPRCB Prcb = KeGetCurrentPrcb();
    PKTHREAD Current = Prcb->CurrentThread;

    // A look without the lock: a thread that it misses is seen at the next tick.
    if (IsListEmpty(&KiReadyList))
        return;
    if (Current == Prcb->IdleThread || SharedUserData->TickCount.LowPart >= Current->QuantumTarget) {
        Prcb->QuantumEnd = TRUE;
        KiRequestDispatch(Prcb, 0);
    }
}

// Vector 2Fh: what interrupts left to do, and another thread where one is due.
// At DISPATCH_LEVEL, interrupts on.
void KiDispatchInterrupt(void)
{
    PKPRCB Prcb = KeGetCurrentPrcb();
    ULONG Requests = __atomic_exchange_n(&Prcb->DpcRequests, 0, __ATOMIC_SEQ_CST);

    if (Requests & KI_DPC_TIMERS)
        KiExpireTimers(KiQueryWaitTime());
    if (Requests & KI_DPC_SERIAL)
        KeSetEvent(&HalSerialReady, 0, FALSE);

    KIRQL Irql = KiAcquireDispatcherLock();
    if (Prcb->QuantumEnd) {
        Prcb->QuantumEnd = FALSE;
        if (!IsListEmpty(&KiReadyList)) {
            if (Prcb->CurrentThread != Prcb->IdleThread)
                KiReadyThread(Prcb->CurrentThread, FALSE);
            KiSwapThread();
        }
    }
    KiReleaseDispatcherLock(Irql);
}

void KeYieldProcessorThread(void)
{
    KIRQL Irql = KiAcquireDispatcherLock();
    if (!IsListEmpty(&KiReadyList)) {
        KiReadyThread(KiCurrentThread(), FALSE);
        KiSwapThread();
    }
    KiReleaseDispatcherLock(Irql);
}

// Whatever there is to do comes with an interrupt.
void KiIdleLoop(void)
{
    for (;;)
        __asm__ volatile("sti; hlt" : : : "memory");
}
