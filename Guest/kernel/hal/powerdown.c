// Resetting the machine and turning it off, for real.

#include "../include/hal.h"

static void HalpWait(void)
{
    for (ULONG i = 0; i < 100000; i++)
        READ_PORT_UCHAR(0x80);
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
    HalpWait();
    KeBugCheckEx(0xA0, 1, 0, 0, 0); // INTERNAL_POWER_ERROR
}

// PM1_CNT: ACPI 6.4, section 4.8.3.2.
#define SCI_EN 0x0001
#define SLP_TYP(type) ((USHORT)((type) & 7) << 10)
#define SLP_EN 0x2000

static void HalpSleep(USHORT Port, UCHAR Type)
{
    if (Port)
        WRITE_PORT_USHORT(Port, (USHORT)((READ_PORT_USHORT(Port) & ~0x1C00) | SLP_TYP(Type) | SLP_EN));
}

void HalPowerOff(void)
{
    KiDisableInterrupts();
    if (HalpAcpi.HaveS5) {
        if (HalpAcpi.SmiCommand && !(READ_PORT_USHORT(HalpAcpi.Pm1aControl) & SCI_EN)) {
            WRITE_PORT_UCHAR(HalpAcpi.SmiCommand, HalpAcpi.AcpiEnable);
            HalpWait();
        }
        HalpSleep(HalpAcpi.Pm1aControl, HalpAcpi.SleepTypeS5a);
        HalpSleep(HalpAcpi.Pm1bControl, HalpAcpi.SleepTypeS5b);
        HalpWait();
    }
    KeBugCheckEx(0xA0, 2, HalpAcpi.Pm1aControl, HalpAcpi.HaveS5, 0);
}
