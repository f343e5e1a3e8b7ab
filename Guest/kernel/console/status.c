// What the guest counts.

#include "../include/console.h"
#include "../include/guard.h"
#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/ps.h"
#include "../include/shareddata.h"

void ConTime(CONSOLE_COMMAND *Command)
{
    ConAnswer(&Command->Tag,
              "ok interrupt-time=%llu switches=%llu system-calls=%llu load-pages=%llu "
              "load-threads=%llu guard-checks=%llu bias=%llu pages-in=%llu",
              KeQueryInterruptTime(), KiContextSwitches, KeSystemCalls, ConLoadPages,
              ConLoadThreads, KiGuardChecks, SharedUserData->InterruptTimeBias,
              MmPagesIn);
}

void ConProcessors(CONSOLE_COMMAND *Command)
{
    for (ULONG i = 0; i < (ULONG)KeNumberProcessors; i++) {
        const KI_PROCESSOR *Processor = KiProcessors[i];
        ConPrint("  processor=%u apic=%u kpcr=0x%llx idt=0x%llx", i, Processor->Pcr.Prcb.ApicId,
                 (ULONG64)(ULONG_PTR)&Processor->Pcr, (ULONG64)(ULONG_PTR)Processor->Idt);
    }
    ConAnswer(&Command->Tag, "ok count=%u", (ULONG)KeNumberProcessors);
}

void ConPool(CONSOLE_COMMAND *Command)
{
    static MM_POOL_STATISTICS Statistics; // the console's thread alone comes here
    PspReapThreads();
    MmQueryPool(&Statistics);
    for (ULONG i = 0; i < MM_POOL_TAGS && Statistics.Tags[i].Tag; i++) {
        const MM_POOL_TAG *Row = &Statistics.Tags[i];
        ConPrint("  tag=%c%c%c%c blocks=%llu bytes=%llu", Row->Tag & 0xFF, Row->Tag >> 8 & 0xFF,
                 Row->Tag >> 16 & 0xFF, Row->Tag >> 24, Row->Blocks, Row->Bytes);
    }
    ConAnswer(&Command->Tag, "ok blocks=%llu bytes=%llu allocations=%llu mapped=%llu",
              Statistics.Blocks, Statistics.Bytes, Statistics.Allocations, Statistics.Mapped);
}
