// Resetting the machine and turning it off, for real.

#include "../include/hal.h"

static void HalpWait(void)
{
    for (ULONG i = 0; i < 100000; i++)
        READ_PORT_UCHAR(0x80);
}

// Ten seconds: who takes it that the machine stayed as it is, and goes on, must
// not be overtaken by a host that was only busy.
void HalpAwaitTheEnd(void)
{
    for (ULONG i = 0; i < 200; i++)
        HalpStall(50000);
}

void HalReturnToFirmware(void)
{
    KiDisableInterrupts();
    if (HalpAcpi.HaveReset) {
        WRITE_PORT_UCHAR(HalpAcpi.ResetPort, HalpAcpi.ResetValue);
        HalpWait();
    }
    WRITE_PORT_UCHAR(0xCF9, 2); // the chipset's reset control: full reset
    WRITE_PORT_UCHAR(0xCF9, 6);
    HalpWait();
    WRITE_PORT_UCHAR(0x64, 0xFE); // the keyboard controller's reset line
    HalpAwaitTheEnd();
    KeBugCheckEx(INTERNAL_POWER_ERROR, 1, 0, 0, 0);
}

// PM1_CNT: ACPI 6.4, section 4.8.3.2.
#define SCI_EN 0x0001
#define SLP_TYP(type) ((USHORT)((type) & 7) << 10)
#define SLP_EN 0x2000

static void HalpWriteSleep(USHORT Port, UCHAR Type)
{
    if (Port)
        WRITE_PORT_USHORT(Port, (USHORT)((READ_PORT_USHORT(Port) & ~0x1C00) | SLP_TYP(Type) | SLP_EN));
}

// Returns before the machine has gone, or if it does not go.
void HalpEnterSleepState(ULONG State)
{
    const HAL_SLEEP_TYPE *Type = &HalpAcpi.Sleep[State];
    if (!Type->Known)
        return;
    if (HalpAcpi.SmiCommand && !(READ_PORT_USHORT(HalpAcpi.Pm1aControl) & SCI_EN)) {
        WRITE_PORT_UCHAR(HalpAcpi.SmiCommand, HalpAcpi.AcpiEnable);
        HalpWait();
    }
    HalpWriteSleep(HalpAcpi.Pm1aControl, Type->A);
    HalpWriteSleep(HalpAcpi.Pm1bControl, Type->B);
}

// S4; where the firmware has none, a hibernated machine is simply off.
void HalPowerOffHibernated(void)
{
    HalpEnterSleepState(HalpAcpi.Sleep[4].Known ? 4 : 5);
    HalpAwaitTheEnd();
}

void HalPowerOff(void)
{
    KiDisableInterrupts();
    HalpEnterSleepState(5);
    HalpAwaitTheEnd();
    KeBugCheckEx(INTERNAL_POWER_ERROR, 2, HalpAcpi.Pm1aControl, HalpAcpi.Sleep[5].Known, 0);
}
