// The clock: channel 0 of the 8254 interval timer, a tick each millisecond.

#include "../include/hal.h"

#define PIT_FREQUENCY 1193182
#define TICKS_PER_SECOND 1000

INIT_CODE void HalpInitializeClock(void)
{
    USHORT Divisor = PIT_FREQUENCY / TICKS_PER_SECOND;
    WRITE_PORT_UCHAR(0x43, 0x34); // channel 0, both bytes, rate generator
    WRITE_PORT_UCHAR(0x40, (UCHAR)Divisor);
    WRITE_PORT_UCHAR(0x40, (UCHAR)(Divisor >> 8));
    HalpEnableLine(HAL_CLOCK_LINE);
}
