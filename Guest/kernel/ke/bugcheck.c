// The end: say what happened and stop.

#include "../include/hal.h"
#include "../include/rtl.h"

void KiBugCheckReport(ULONG Code, ULONG_PTR P1, ULONG_PTR P2, ULONG_PTR P3, ULONG_PTR P4)
{
    static volatile LONG Reported;
    CHAR Line[192];

    KiDisableInterrupts();
    // A fault in here must not begin anew.
    if (!__atomic_exchange_n(&Reported, 1, __ATOMIC_SEQ_CST)) {
        SIZE_T Length = RtlFormat(Line, sizeof Line,
                                  "\n*** STOP: 0x%08x (0x%016llx,0x%016llx,0x%016llx,0x%016llx)\n"
                                  "bugcheck 0x%08x\n",
                                  Code, P1, P2, P3, P4, Code);
        HalSerialWrite(Line, Length);
        HalReportPanic();
    }
    for (;;)
        __asm__ volatile("cli; hlt");
}
