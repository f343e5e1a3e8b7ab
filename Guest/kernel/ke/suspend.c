// All processors through a sleep in which each loses its state: every one saves
// its own, the boot processor has the machine put to sleep, comes back by the
// waking vector and starts the others again, as at boot; each goes on where it
// saved itself.

#include "../include/hal.h"
#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/po.h"

static KI_STATE KiStates[KI_MAXIMUM_PROCESSORS];
static volatile LONG KiParked;
static BOOLEAN KiStayedAwake;
static KI_SLEEP_ROUTINE *KiSleepRoutine;

// On a stack that nothing in the saved state uses.
static ULONG_PTR KiWakingStack(KI_PROCESSOR *Processor)
{
    return (ULONG_PTR)Processor->IstStacks[2] + IST_STACK_SIZE - 0x10;
}

static void KiWakeProcessor(KI_PROCESSOR *Processor)
{
    PKPRCB Prcb = &Processor->Pcr.Prcb;

    KiWriteRoot(MiSystemRoot());
    if (Prcb->Number == 0)
        PopFirstAfterWake();
    KiInitializeProcessor(Processor, Prcb->Number);
    KiSetTeb(Prcb->CurrentThread);
    HalpInitializeLocalApic(Prcb->Number == 0);
    if (Prcb->Number != 0)
        KiArrive(Processor);
    KiRestoreProcessorState(&KiStates[Prcb->Number]);
}

KI_LOW_START KiWakingPlace(void)
{
    return (KI_LOW_START){KiLowRoot, (ULONG_PTR)KiWakeProcessor, KiWakingStack(KiProcessors[0]),
                          (ULONG_PTR)KiProcessors[0]};
}

static void KiWakeOthers(void)
{
    for (ULONG i = 1; i < (ULONG)KeNumberProcessors; i++) {
        KI_PROCESSOR *Processor = KiProcessors[i];
        // Its threads and its locks are here: there is no going on without it.
        if (!KiBringUp(KiWakeProcessor, Processor, KiWakingStack(Processor)))
            KeBugCheckEx(INTERNAL_POWER_ERROR, 3, i, 0, 0);
    }
}

// On every processor, in KeIpiGenericCall: no flush, no other such call is
// under way. Interrupts that were lost with the local APICs are made up for.
static ULONG_PTR KiSuspendProcessor(ULONG_PTR Unused)
{
    PKPRCB Prcb = KeGetCurrentPrcb();
    ULONG_PTR Flags = KiReadFlags();
    (void)Unused;

    KiDisableInterrupts();
    if (KiSaveProcessorState(&KiStates[Prcb->Number]) == 0) {
        __atomic_add_fetch(&KiParked, 1, __ATOMIC_SEQ_CST);
        if (Prcb->Number == 0) {
            while (__atomic_load_n(&KiParked, __ATOMIC_SEQ_CST) < KeNumberProcessors)
                __builtin_ia32_pause();
            KiPrepareLowStart(KiWakeProcessor, KiProcessors[0], KiWakingStack(KiProcessors[0]));
            __asm__ volatile("wbinvd" : : : "memory");
            KiSleepRoutine(); // comes back only if it failed
            KiStayedAwake = TRUE;
            KiWakeOthers();
        } else {
            // Until the INIT with which this processor starts again, after the
            // sleep or without it.
            for (;;)
                __asm__ volatile("cli; hlt" : : : "memory");
        }
    } else {
        if (Prcb->Number == 0) {
            HalpResumeDevices();
            KiWakeOthers();
        }
        HalpStartTimer();
        Prcb->QuantumEnd = TRUE;
        KiRequestDispatch(Prcb, KI_DPC_TIMERS | KI_DPC_SERIAL);
    }
    if (Flags & 0x200)
        KiEnableInterrupts();
    return 0;
}

// FALSE: the machine would not sleep. One caller at a time.
BOOLEAN KiSuspend(KI_SLEEP_ROUTINE *Sleep)
{
    KiSleepRoutine = Sleep;
    KiParked = 0;
    KiStayedAwake = FALSE;
    KeIpiGenericCall(KiSuspendProcessor, 0);
    return !KiStayedAwake;
}
