// Which thread runs: one ready list, round robin, preemptive. One lock guards
// all of it and is held across the switch; the thread switched to releases it.

#include "../include/ke.h"
#include "../include/shareddata.h"

#define QUANTUM_TICKS 4

static LIST_ENTRY KiReadyList = {&KiReadyList, &KiReadyList};
static volatile LONG KiDispatcherLock;
volatile ULONG64 KiContextSwitches;

ULONG64 KiAcquireDispatcherLock(void)
{
    ULONG64 Flags = KiReadFlags();
    KiDisableInterrupts();
    while (__atomic_exchange_n(&KiDispatcherLock, 1, __ATOMIC_ACQUIRE))
        __builtin_ia32_pause();
    return Flags;
}

void KiReleaseDispatcherLock(ULONG64 Flags)
{
    __atomic_store_n(&KiDispatcherLock, 0, __ATOMIC_RELEASE);
    if (Flags & 0x200)
        KiEnableInterrupts();
}

// `First`: a thread that has waited goes before those that computed.
void KiReadyThread(PKTHREAD Thread, BOOLEAN First)
{
    Thread->State = Ready;
    if (First) {
        InsertHeadList(&KiReadyList, &Thread->WaitListEntry);
        KeGetCurrentPrcb()->QuantumEnd = TRUE;
    } else {
        InsertTailList(&KiReadyList, &Thread->WaitListEntry);
    }
}

// What the processor holds for a thread beside its registers.
void KiSwitchState(PKTHREAD To)
{
    PKPRCB Prcb = KeGetCurrentPrcb();
    PKPCR Pcr = CONTAINING_RECORD(Prcb, KPCR, Prcb);
    ULONG64 Root;

    Prcb->CurrentThread = To;
    Prcb->RspBase = (ULONG64)To->InitialStack;
    Pcr->TssBase->Rsp[0] = (ULONG64)To->InitialStack;
    KiWriteMsr(0xC0000102, (ULONG64)To->Teb); // IA32_KERNEL_GS_BASE
    __asm__ volatile("movq %%cr3, %0" : "=r"(Root));
    if (Root != To->ApcState.Process->DirectoryTableBase)
        __asm__ volatile("movq %0, %%cr3" : : "r"(To->ApcState.Process->DirectoryTableBase) : "memory");
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
    KiSwitchState(To);
    KiSwapContext(From, To);
}

// At the end of every interrupt. A thread at DISPATCH_LEVEL or above is not
// preempted: its quantum's end is remembered until the next tick.
void KiCheckPreemption(PKTRAP_FRAME Frame)
{
    PKPRCB Prcb = KeGetCurrentPrcb();
    PKTHREAD Current = Prcb->CurrentThread;

    if (SharedUserData->TickCount.LowPart >= Current->QuantumTarget)
        Prcb->QuantumEnd = TRUE;
    if (Frame->PreviousIrql >= DISPATCH_LEVEL || !Prcb->QuantumEnd)
        return;
    ULONG64 Flags = KiAcquireDispatcherLock();
    if (!IsListEmpty(&KiReadyList)) {
        if (Current != Prcb->IdleThread)
            KiReadyThread(Current, FALSE);
        KiSwapThread();
    }
    KiReleaseDispatcherLock(Flags);
}

void KeYieldProcessorThread(void)
{
    ULONG64 Flags = KiAcquireDispatcherLock();
    if (!IsListEmpty(&KiReadyList)) {
        KiReadyThread(KiCurrentThread(), FALSE);
        KiSwapThread();
    }
    KiReleaseDispatcherLock(Flags);
}

void KiIdleLoop(void)
{
    for (;;) {
        ULONG64 Flags = KiAcquireDispatcherLock();
        if (!IsListEmpty(&KiReadyList))
            KiSwapThread();
        KiReleaseDispatcherLock(Flags & ~0x200ull);
        // STI holds interrupts back for one more instruction: none is lost
        // between the look at the list and the halt.
        __asm__ volatile("sti; hlt; cli" : : : "memory");
    }
}
