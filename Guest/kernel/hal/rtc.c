// The real-time clock (MC146818), read once at boot for the system time.

#include "../include/hal.h"

static UCHAR HalpReadCmos(UCHAR Index)
{
    WRITE_PORT_UCHAR(0x70, Index);
    return READ_PORT_UCHAR(0x71);
}

static ULONG HalpReadField(UCHAR Index, BOOLEAN Binary)
{
    UCHAR Value = HalpReadCmos(Index);
    return Binary ? Value : (ULONG)(Value >> 4) * 10 + (Value & 15);
}

// Days from 1601-01-01: the Gregorian calendar repeats every 400 years, and
// 1601 begins such a period.
static ULONG64 HalpDays(ULONG Year, ULONG Month, ULONG Day)
{
    static const USHORT Before[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    ULONG64 Years = Year - 1601;
    ULONG64 Days = Years * 365 + Years / 4 - Years / 100 + Years / 400;
    BOOLEAN Leap = (Year % 4 == 0 && Year % 100 != 0) || Year % 400 == 0;
    return Days + Before[(Month - 1) % 12] + (Leap && Month > 2) + Day - 1;
}

ULONG64 HalQueryRealTimeClock(void)
{
    for (ULONG Patience = 0; Patience < 1000000; Patience++) {
        if (!(HalpReadCmos(0x0A) & 0x80)) // no update in progress
            break;
    }
    BOOLEAN Binary = (HalpReadCmos(0x0B) & 4) != 0;
    ULONG64 Days = HalpDays(2000 + HalpReadField(9, Binary), HalpReadField(8, Binary),
                            HalpReadField(7, Binary));
    ULONG64 Seconds = Days * 86400 + HalpReadField(4, Binary) * 3600 +
                      HalpReadField(2, Binary) * 60 + HalpReadField(0, Binary);
    return Seconds * 10000000;
}
