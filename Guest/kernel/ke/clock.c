// Time: the shared user data that every tick advances.

#include "../include/hal.h"
#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/shareddata.h"
#include "../../common/build.h"

// One writer (the clock interrupt), any number of readers, no lock: see
// KSYSTEM_TIME.
static void KiWriteSystemTime(KSYSTEM_TIME *Time, ULONG64 Value)
{
    Time->High2Time = (LONG)(Value >> 32);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    Time->LowPart = (ULONG)Value;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    Time->High1Time = (LONG)(Value >> 32);
}

// For the writer itself.
static ULONG64 KiReadSystemTime(const KSYSTEM_TIME *Time)
{
    return (ULONG64)(ULONG)Time->High1Time << 32 | Time->LowPart;
}

void KeUpdateSystemTime(ULONG64 Elapsed)
{
    KUSER_SHARED_DATA *Data = SharedUserData;
    ULONG64 Now = KiReadSystemTime(&Data->InterruptTime) + Elapsed;

    KiWriteSystemTime(&Data->InterruptTime, Now);
    KiWriteSystemTime(&Data->SystemTime, KiReadSystemTime(&Data->SystemTime) + Elapsed);
    KiWriteSystemTime(&Data->TickCount, Now / HAL_CLOCK_INCREMENT);
    if (Now - Data->InterruptTimeBias >= KiEarliestTimer)
        KiRequestDispatch(KeGetCurrentPrcb(), KI_DPC_TIMERS);
}

// Interrupt time less its bias, both of one moment.
ULONG64 KiQueryWaitTime(void)
{
    const volatile ULONG64 *Bias = &SharedUserData->InterruptTimeBias;
    ULONG64 Before, Now;
    do {
        Before = *Bias;
        Now = KeQueryInterruptTime();
    } while (*Bias != Before);
    return Now - Before;
}

static ULONG_PTR KiAdvance(ULONG_PTR Argument)
{
    ULONG64 Slept = *(const ULONG64 *)Argument;
    KUSER_SHARED_DATA *Data = SharedUserData;
    // The boot processor, whose tick is the writer at other times, does it.
    if (KeGetCurrentPrcb()->Number == 0) {
        ULONG_PTR Flags = KiReadFlags();
        KiDisableInterrupts();
        Data->InterruptTimeBias += Slept;
        KiWriteSystemTime(&Data->InterruptTime, KiReadSystemTime(&Data->InterruptTime) + Slept);
        KiWriteSystemTime(&Data->SystemTime, KiReadSystemTime(&Data->SystemTime) + Slept);
        if (Flags & 0x200)
            KiEnableInterrupts();
    }
    return 0;
}

// Interrupt time takes in the sleep, and its bias says how much of it that is:
// relative waits, which count without it, go on as if there had been none.
void KeAdvanceAfterSleep(ULONG64 Slept)
{
    KeIpiGenericCall(KiAdvance, (ULONG_PTR)&Slept);
}

INIT_CODE void KiInitializeSharedData(void)
{
    KUSER_SHARED_DATA *Data = SharedUserData;
    static const CHAR Root[] = "C:\\Windows";

    // A tick is 1 ms: the multiplier is a fixed-point number with 24 bits of
    // fraction.
    Data->TickCountMultiplier = 1u << 24;
    Data->ImageNumberLow = Data->ImageNumberHigh = NT_MACHINE;
    Data->NtBuildNumber = NT_BUILD;
    Data->NtProductType = 1; // workstation
    Data->ProductTypeIsValid = TRUE;
    Data->NtMajorVersion = NT_MAJOR_VERSION;
    Data->NtMinorVersion = NT_MINOR_VERSION;
    Data->SystemCall = 0;
    for (ULONG i = 0; i < sizeof Root; i++)
        Data->NtSystemRoot[i] = (WCHAR)Root[i];
    KiWriteSystemTime(&Data->SystemTime, HalQueryRealTimeClock());
}
