// Putting the machine to sleep and its devices in order when it comes back.

#include "../include/hal.h"
#include "../include/mm.h"
#include "../include/mp.h"

// PM1_STS: ACPI 6.4, section 4.8.3.1. Written ones clear.
#define WAK_STS 0x8000
#define ALL_STATUS 0xC731

// Whether the control port is there at all: on QEMU's q35 it has gone after the
// first sleep, since the firmware does not place it anew.
BOOLEAN HalCanSleep(ULONG State)
{
    return HalpAcpi.Sleep[State].Known && HalpAcpi.Pm1aControl &&
           READ_PORT_USHORT(HalpAcpi.Pm1aControl) != 0xFFFF;
}

// S3: ACPI 6.4, section 16.1. All processors are parked. Returns if nothing came of it.
void HalSuspendToRam(void)
{
    HalpDrainSerial();
    *(volatile ULONG *)(HalpAcpi.Facs + 12) = (ULONG)LOW_START; // firmware waking vector
    *(volatile ULONG64 *)(HalpAcpi.Facs + 24) = 0;              // the 64-bit one: none
    HalpEnterSleepState(3);
    HalpAwaitTheEnd();
}

// Every device has been reset, and what of them the firmware needs to start,
// it has set up for itself.
void HalpResumeDevices(void)
{
    if (READ_PORT_USHORT(HalpAcpi.Pm1aEvent) & WAK_STS)
        WRITE_PORT_USHORT(HalpAcpi.Pm1aEvent, ALL_STATUS);
    HalpInitializePic();
    HalpResetSerial();
    HalpInitializeClock();
}
