// The end: say what happened and stop.

#include "../include/hal.h"
#include "../include/mp.h"
#include "../include/rtl.h"

static volatile LONG KiBugCheckActive;
UCHAR KiBugCheckContext[0x4D0]; // a CONTEXT, see context.S

void KiFreezeIfBugCheck(void)
{
    while (__atomic_load_n(&KiBugCheckActive, __ATOMIC_SEQ_CST))
        __asm__ volatile("cli; hlt");
}

// An NMI reaches a processor whatever it is doing.
static void KiFreezeOthers(void)
{
    PKPRCB Self = KeGetCurrentPrcb();
    for (ULONG i = 0; i < (ULONG)KeNumberProcessors && KeNumberProcessors > 1; i++) {
        PKPRCB Prcb = &KiProcessors[i]->Pcr.Prcb;
        if (Prcb != Self)
            HalpSendNmi(Prcb->ApicId);
    }
}

// Where every crash comes by: from KeBugCheckEx and KeBugCheck, and from traps,
// which have a frame to show.
void KeBugCheck2(ULONG Code, ULONG_PTR P1, ULONG_PTR P2, ULONG_PTR P3, ULONG_PTR P4,
                 PKTRAP_FRAME Frame)
{
    CHAR Line[192];
    (void)Frame;

    KiDisableInterrupts();
    // A fault in here, or another processor's, must not begin anew.
    if (!__atomic_exchange_n(&KiBugCheckActive, 1, __ATOMIC_SEQ_CST)) {
        KiFreezeOthers();
        SIZE_T Length = RtlFormat(Line, sizeof Line,
                                  "\n*** STOP: 0x%08x (" KI_PARAMETER_FORMAT "," KI_PARAMETER_FORMAT
                                  "," KI_PARAMETER_FORMAT "," KI_PARAMETER_FORMAT ")\n"
                                  "bugcheck 0x%08x\n",
                                  Code, (ULONG64)P1, (ULONG64)P2, (ULONG64)P3, (ULONG64)P4, Code);
        HalSerialWrite(Line, Length);
        HalReportPanic();
    }
    for (;;)
        __asm__ volatile("cli; hlt");
}
