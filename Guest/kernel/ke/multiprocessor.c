// Starting the other processors: INIT, startup IPI, and from real mode here
// (Intel SDM volume 3A, section 8.4.4).

#include "../include/hal.h"
#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/ps.h"
#include "../include/rtl.h"

CHAR KeNumberProcessors = 1;
KI_PROCESSOR *KiProcessors[KI_MAXIMUM_PROCESSORS];

ULONG_PTR KiLowRoot;

// Puts the way in from real mode in place, for the next who comes through.
void KiPrepareLowStart(KI_LOW_ENTRY *Entry, KI_PROCESSOR *Processor, ULONG_PTR Stack)
{
    PUCHAR Page = MmPhysicalToVirtual(LOW_START);

    RtlCopyMemory(Page, KiLowStart, (SIZE_T)(KiLowStartEnd - KiLowStart));
    *(KI_LOW_START *)(Page + LOW_START_PARAMETERS) =
        (KI_LOW_START){KiLowRoot, (ULONG_PTR)Entry, Stack, (ULONG_PTR)Processor};
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void KiArrive(KI_PROCESSOR *Processor)
{
    LONG Expected = Absent;
    __atomic_compare_exchange_n(&Processor->Arrival, &Expected, Arrived, FALSE, __ATOMIC_SEQ_CST,
                                __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&Processor->Arrival, __ATOMIC_SEQ_CST) < Admitted)
        __builtin_ia32_pause();
    __atomic_store_n(&Processor->Arrival, Entered, __ATOMIC_SEQ_CST);
}

// Tries more than once: after a sleep the firmware, too, has just sent startup
// IPIs, and a processor that is slow to answer takes the firmware's after our
// INIT, and then none of ours. One that is hit by an INIT in KiArrive comes there
// again with the startup IPI that follows.
BOOLEAN KiBringUp(KI_LOW_ENTRY *Entry, KI_PROCESSOR *Processor, ULONG_PTR Stack)
{
    Processor->Arrival = Absent;
    KiPrepareLowStart(Entry, Processor, Stack);
    for (ULONG Try = 0; Try < 50; Try++) {
        HalpSendStartup(Processor->Pcr.Prcb.ApicId, (UCHAR)(LOW_START >> PAGE_SHIFT));
        for (ULONG Wait = 0; Wait < 40; Wait++) {
            LONG Expected = Arrived;
            if (__atomic_compare_exchange_n(&Processor->Arrival, &Expected, Admitted, FALSE,
                                            __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
                while (__atomic_load_n(&Processor->Arrival, __ATOMIC_SEQ_CST) != Entered)
                    __builtin_ia32_pause();
                return TRUE;
            }
            HalpStall(5000);
        }
    }
    return FALSE;
}

// A processor's first steps, on its idle thread's stack.
static void KiOtherProcessorStartup(KI_PROCESSOR *Processor)
{
    KiWriteRoot(MiSystemRoot());
    KiInitializeProcessor(Processor, Processor->Pcr.Prcb.Number);
    HalpInitializeLocalApic(FALSE);
    PspAdoptIdleThread(Processor->IdleThread, Processor->IdleStack,
                       (PUCHAR)Processor->IdleStack + KERNEL_STACK_SIZE);
    HalpStartTimer();
    KiArrive(Processor);
    KiIdleLoop();
}

INIT_CODE void KiStartOtherProcessors(void)
{
    UCHAR Self = KeGetCurrentPrcb()->ApicId;

    KiLowRoot = MmCreateLowRoot(); // with one processor, too: it may sleep
    for (ULONG i = 0; i < HalpAcpi.ProcessorCount && KeNumberProcessors < KI_MAXIMUM_PROCESSORS; i++) {
        if (HalpAcpi.ApicIds[i] == Self)
            continue;
        KI_PROCESSOR *Processor = MmAllocateSystemPages(sizeof *Processor);
        if (!Processor)
            return;
        Processor->IdleStack = MmCreateKernelStack();
        Processor->IdleThread = ExAllocatePoolWithTag(NonPagedPoolNx, sizeof(ETHREAD), 'erhT');
        if (!Processor->IdleStack || !Processor->IdleThread)
            return;
        Processor->Pcr.Prcb.Number = (ULONG)KeNumberProcessors;
        Processor->Pcr.Prcb.ApicId = HalpAcpi.ApicIds[i];
        KiProcessors[(ULONG)KeNumberProcessors] = Processor;
        if (!KiBringUp(KiOtherProcessorStartup, Processor,
                       (ULONG_PTR)Processor->IdleStack + KERNEL_STACK_SIZE - KERNEL_STACK_RESERVE))
            KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 11, HalpAcpi.ApicIds[i], 0, 0);
        KeNumberProcessors++;
    }
}
