// Time as the machine's own counters tell it: the ACPI timer, and, where there
// is none, channel 2 of the 8254 interval timer for short waits.

#include "../include/hal.h"

#define PIT_FREQUENCY 1193182

// ACPI 6.4, section 4.8.3.3: 24 bits of it exist everywhere; that wraps after
// 4.7 seconds, and ticks do come sooner.
#define PM_TIMER_FREQUENCY 3579545
#define PM_TIMER_MASK 0xFFFFFF

static ULONG HalpLastCount;
static ULONG64 HalpRemainder;

static BOOLEAN HalpReadPmTimer(ULONG *Count)
{
    *Count = HalpAcpi.PmTimer ? READ_PORT_ULONG(HalpAcpi.PmTimer) : ~0u;
    return *Count != ~0u; // all ones: no such timer, or no longer
}

void HalpInitializeClock(void)
{
    // Channel 0, mode 0, is left without a count: it raises no interrupt.
    WRITE_PORT_UCHAR(0x43, 0x30);
    HalpReadPmTimer(&HalpLastCount);
    HalpLastCount &= PM_TIMER_MASK;
}

// One short wait on channel 2, whose output is bit 5 of port 61h (IBM PC AT
// Technical Reference, "System timers").
static void HalpStallByPit(ULONG Microseconds)
{
    USHORT Count = (USHORT)((ULONG64)PIT_FREQUENCY * Microseconds / 1000000 + 1);
    WRITE_PORT_UCHAR(0x61, (UCHAR)((READ_PORT_UCHAR(0x61) & ~3) | 1)); // gate on, speaker off
    WRITE_PORT_UCHAR(0x43, 0xB0); // both bytes, interrupt on terminal count
    WRITE_PORT_UCHAR(0x42, (UCHAR)Count);
    WRITE_PORT_UCHAR(0x42, (UCHAR)(Count >> 8));
    while (!(READ_PORT_UCHAR(0x61) & 0x20))
        __builtin_ia32_pause();
}

// Waits for at least so long, 50 ms at most, and says how long it was.
ULONG HalpStall(ULONG Microseconds)
{
    ULONG Start, Now;

    if (!HalpReadPmTimer(&Start)) {
        HalpStallByPit(Microseconds);
        return Microseconds;
    }
    for (;;) {
        if (!HalpReadPmTimer(&Now))
            return Microseconds;
        ULONG64 Passed = ((Now - Start) & PM_TIMER_MASK) * 1000000ull / PM_TIMER_FREQUENCY;
        if (Passed >= Microseconds)
            return (ULONG)Passed;
        for (ULONG i = 0; i < 64; i++)
            __builtin_ia32_pause();
    }
}

// For the clock: in 100 ns, since it was last asked.
ULONG64 HalpElapsedTime(void)
{
    ULONG Count;
    if (!HalpReadPmTimer(&Count))
        return HAL_CLOCK_INCREMENT;
    HalpRemainder += ((Count - HalpLastCount) & PM_TIMER_MASK) * 10000000ull;
    HalpLastCount = Count & PM_TIMER_MASK;
    ULONG64 Elapsed = HalpRemainder / PM_TIMER_FREQUENCY;
    HalpRemainder %= PM_TIMER_FREQUENCY;
    return Elapsed;
}
