// The machine: ports, interrupt controller, timer, serial line, ACPI.

#ifndef VIGIL_HAL_H
#define VIGIL_HAL_H

#include "ke.h"

FORCEINLINE void WRITE_PORT_UCHAR(USHORT Port, UCHAR Value)
{
    __asm__ volatile("outb %0, %1" : : "a"(Value), "Nd"(Port));
}

FORCEINLINE UCHAR READ_PORT_UCHAR(USHORT Port)
{
    UCHAR Value;
    __asm__ volatile("inb %1, %0" : "=a"(Value) : "Nd"(Port));
    return Value;
}

FORCEINLINE void WRITE_PORT_USHORT(USHORT Port, USHORT Value)
{
    __asm__ volatile("outw %0, %1" : : "a"(Value), "Nd"(Port));
}

FORCEINLINE USHORT READ_PORT_USHORT(USHORT Port)
{
    USHORT Value;
    __asm__ volatile("inw %1, %0" : "=a"(Value) : "Nd"(Port));
    return Value;
}

FORCEINLINE ULONG READ_PORT_ULONG(USHORT Port)
{
    ULONG Value;
    __asm__ volatile("inl %1, %0" : "=a"(Value) : "Nd"(Port));
    return Value;
}

// The 8259 pair's sixteen lines begin at this vector.
#define HAL_VECTOR_BASE 0x50
#define HAL_SERIAL_LINE 4

// pic.c
void HalpInitializePic(void);
void HalpEnableLine(ULONG Line);
BOOLEAN HalpBeginInterrupt(ULONG Line); // FALSE: spurious
void HalpEndInterrupt(ULONG Line);

// timer.c
#define HAL_CLOCK_INCREMENT 10000ull // 100 ns units: 1 ms
#define HAL_CLOCK_FREQUENCY 1000
#define HAL_QUANTUM_FREQUENCY 250
void HalpInitializeClock(void);
ULONG HalpStall(ULONG Microseconds); // how long it was in truth
ULONG64 HalpElapsedTime(void); // since it was last asked, in 100 ns

// apic.c
void HalpMapLocalApic(void);
void HalpInitializeLocalApic(BOOLEAN TakesExternal);
void HalpCalibrateTimer(void);
void HalpStartTimer(void);
void HalpEndApicInterrupt(void);
void HalpSendInterrupt(UCHAR ApicId, UCHAR Vector);
void HalpSendNmi(UCHAR ApicId);
void HalpSendStartup(UCHAR ApicId, UCHAR Page);

// rtc.c
ULONG64 HalQueryRealTimeClock(void); // 100 ns since 1601

// serial.c
void HalpInitializeSerial(USHORT Port);
void HalpResetSerial(void);
void HalpDrainSerial(void); // waits until all is sent
void HalpSerialInterrupt(void);
LONG HalSerialRead(void);            // -1: nothing there
void HalSerialWrite(const CHAR *Text, SIZE_T Length);
extern KEVENT HalSerialReady;

// acpi.c
#define HAL_PROCESSORS_MAXIMUM 16
typedef struct {
    BOOLEAN Known;
    UCHAR A, B; // SLP_TYP for either control port
} HAL_SLEEP_TYPE;

typedef struct {
    ULONG ProcessorCount; // usable ones, in the firmware's order
    UCHAR ApicIds[HAL_PROCESSORS_MAXIMUM];
    USHORT Pm1aEvent, Pm1aControl, Pm1bControl;
    HAL_SLEEP_TYPE Sleep[6]; // S0 to S5
    PUCHAR Facs;             // NULL: none
    BOOLEAN HaveReset;
    USHORT ResetPort;
    UCHAR ResetValue;
    USHORT SmiCommand, PmTimer;
    UCHAR AcpiEnable;
} HAL_ACPI;
extern HAL_ACPI HalpAcpi;
void HalpInitializeAcpi(void);

// powerdown.c
NORETURN void HalReturnToFirmware(void); // reset
NORETURN void HalPowerOff(void);         // S5
void HalPowerOffHibernated(void);         // returns if it did not go
void HalpAwaitTheEnd(void);
void HalpEnterSleepState(ULONG State);

// sleep.c
BOOLEAN HalCanSleep(ULONG State);
void HalSuspendToRam(void);
void HalpResumeDevices(void);

// panic.c
void HalReportPanic(void);

#endif
