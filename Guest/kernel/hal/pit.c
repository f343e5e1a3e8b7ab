// The clock: channel 0 of the 8254 interval timer, a tick each millisecond, and
// the ACPI timer, which says how long it really was. Ticks get lost where the
// host is busy.

#include "../include/hal.h"

#define PIT_FREQUENCY 1193182
#define TICKS_PER_SECOND 1000

// ACPI 6.4, section 4.8.3.3: 24 bits of it exist everywhere; that wraps after
// 4.7 seconds, and ticks do come sooner.
#define PM_TIMER_FREQUENCY 3579545
#define PM_TIMER_MASK 0xFFFFFF

static ULONG HalpLastCount;
static ULONG64 HalpRemainder;

INIT_CODE void HalpInitializeClock(void)
{
    USHORT Divisor = PIT_FREQUENCY / TICKS_PER_SECOND;
    WRITE_PORT_UCHAR(0x43, 0x34); // channel 0, both bytes, rate generator
    WRITE_PORT_UCHAR(0x40, (UCHAR)Divisor);
    WRITE_PORT_UCHAR(0x40, (UCHAR)(Divisor >> 8));
    if (HalpAcpi.PmTimer)
        HalpLastCount = READ_PORT_ULONG(HalpAcpi.PmTimer) & PM_TIMER_MASK;
    HalpEnableLine(HAL_CLOCK_LINE);
}

ULONG64 HalpElapsedTime(void)
{
    ULONG Count = HalpAcpi.PmTimer ? READ_PORT_ULONG(HalpAcpi.PmTimer) : ~0u;
    if (Count == ~0u) // no such timer, or no longer
        return HAL_CLOCK_INCREMENT;
    HalpRemainder += ((Count - HalpLastCount) & PM_TIMER_MASK) * 10000000ull;
    HalpLastCount = Count & PM_TIMER_MASK;
    ULONG64 Elapsed = HalpRemainder / PM_TIMER_FREQUENCY;
    HalpRemainder %= PM_TIMER_FREQUENCY;
    return Elapsed;
}
