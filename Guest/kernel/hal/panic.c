// Telling the hypervisor of a bug check, where QEMU has the pvpanic device
// (QEMU, docs/specs/pvpanic.txt): a port that reads as the events it takes.

#include "../include/hal.h"

#define PVPANIC_PORT 0x505
#define PVPANIC_PANICKED 1
#define PVPANIC_CRASHLOADED 2

void HalReportPanic(void)
{
    UCHAR Events = READ_PORT_UCHAR(PVPANIC_PORT);
    // All ones: nothing is there.
    if ((Events & PVPANIC_PANICKED) && !(Events & ~(PVPANIC_PANICKED | PVPANIC_CRASHLOADED)))
        WRITE_PORT_UCHAR(PVPANIC_PORT, PVPANIC_PANICKED);
}
