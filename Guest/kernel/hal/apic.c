// The local APIC of the processor that asks (Intel SDM volume 3A, chapter 10):
// its timer, interrupts to other processors, and the way of the 8259's.

#include "../include/hal.h"
#include "../include/mm.h"
#include "../include/mp.h"

#define APIC_ID 0x020
#define APIC_EOI 0x0B0
#define APIC_SPURIOUS 0x0F0
#define APIC_COMMAND_LOW 0x300
#define APIC_COMMAND_HIGH 0x310
#define APIC_LVT_TIMER 0x320
#define APIC_LVT_LINT0 0x350
#define APIC_LVT_LINT1 0x360
#define APIC_LVT_ERROR 0x370
#define APIC_TIMER_INITIAL 0x380
#define APIC_TIMER_CURRENT 0x390
#define APIC_TIMER_DIVIDE 0x3E0

#define IA32_APIC_BASE 0x1B
#define APIC_ENABLE 0x800
#define SPURIOUS_ENABLE 0x100
#define LVT_MASKED 0x10000
#define LVT_PERIODIC 0x20000
#define DELIVER_NMI 0x400
#define DELIVER_INIT 0x500
#define DELIVER_STARTUP 0x600
#define DELIVER_EXTERNAL 0x700
#define LEVEL_ASSERT 0x4000
#define LEVEL_TRIGGERED 0x8000
#define COMMAND_PENDING 0x1000
#define DIVIDE_BY_16 3

#define CALIBRATION 10000 // microseconds

static ULONG HalpTimerRate; // counts in a second; 0: not measured yet

static ULONG HalpReadApic(ULONG Register)
{
    return *(volatile ULONG *)(MM_LOCAL_APIC_VA + Register);
}

static void HalpWriteApic(ULONG Register, ULONG Value)
{
    *(volatile ULONG *)(MM_LOCAL_APIC_VA + Register) = Value;
}

INIT_CODE void HalpMapLocalApic(void)
{
    MMPTE Base = (MMPTE)KiReadMsr(IA32_APIC_BASE) & PTE_FRAME;
    MmMapPage(MiSystemRoot(), MM_LOCAL_APIC_VA, Base | MM_KERNEL_RW | PTE_CACHE_DISABLE);
}

// The boot processor takes the 8259's interrupts: virtual wire mode.
void HalpInitializeLocalApic(BOOLEAN TakesExternal)
{
    KiWriteMsr(IA32_APIC_BASE, KiReadMsr(IA32_APIC_BASE) | APIC_ENABLE);
    HalpWriteApic(APIC_SPURIOUS, SPURIOUS_ENABLE | SPURIOUS_VECTOR);
    HalpWriteApic(APIC_LVT_TIMER, LVT_MASKED);
    HalpWriteApic(APIC_LVT_LINT0, TakesExternal ? DELIVER_EXTERNAL : LVT_MASKED);
    HalpWriteApic(APIC_LVT_LINT1, TakesExternal ? DELIVER_NMI : LVT_MASKED);
    HalpWriteApic(APIC_LVT_ERROR, LVT_MASKED);
    KeGetCurrentPrcb()->ApicId = (UCHAR)(HalpReadApic(APIC_ID) >> 24);
}

// How fast the timer counts: against the ACPI timer, or the interval timer.
INIT_CODE void HalpCalibrateTimer(void)
{
    HalpWriteApic(APIC_TIMER_DIVIDE, DIVIDE_BY_16);
    HalpWriteApic(APIC_TIMER_INITIAL, ~0u);
    ULONG Microseconds = HalpStall(CALIBRATION);
    ULONG Counted = ~0u - HalpReadApic(APIC_TIMER_CURRENT);
    HalpWriteApic(APIC_TIMER_INITIAL, 0);
    HalpTimerRate = (ULONG)((ULONG64)Counted * 1000000 / Microseconds);
}

// The boot processor's ticks are the system's clock; to the others they say
// only when a quantum ends.
void HalpStartTimer(void)
{
    ULONG Frequency = KeGetCurrentPrcb()->Number == 0 ? HAL_CLOCK_FREQUENCY : HAL_QUANTUM_FREQUENCY;
    HalpWriteApic(APIC_TIMER_DIVIDE, DIVIDE_BY_16);
    HalpWriteApic(APIC_LVT_TIMER, LVT_PERIODIC | CLOCK_VECTOR);
    HalpWriteApic(APIC_TIMER_INITIAL, HalpTimerRate / Frequency);
}

void HalpEndApicInterrupt(void)
{
    HalpWriteApic(APIC_EOI, 0);
}

// The two halves of the command register must not be torn apart by an
// interrupt that sends one of its own.
static void HalpSendCommand(UCHAR ApicId, ULONG Command)
{
    ULONG_PTR Flags = KiReadFlags();
    KiDisableInterrupts();
    HalpWriteApic(APIC_COMMAND_HIGH, (ULONG)ApicId << 24);
    HalpWriteApic(APIC_COMMAND_LOW, Command);
    while (HalpReadApic(APIC_COMMAND_LOW) & COMMAND_PENDING)
        __builtin_ia32_pause();
    if (Flags & 0x200)
        KiEnableInterrupts();
}

void HalpSendInterrupt(UCHAR ApicId, UCHAR Vector)
{
    HalpSendCommand(ApicId, LEVEL_ASSERT | Vector);
}

void HalpSendNmi(UCHAR ApicId)
{
    HalpSendCommand(ApicId, LEVEL_ASSERT | DELIVER_NMI);
}

// The startup IPI twice, as the MultiProcessor Specification has it (version
// 1.4, appendix B.4); the second finds the processor running and is ignored.
void HalpSendStartup(UCHAR ApicId, UCHAR Page)
{
    HalpSendCommand(ApicId, LEVEL_TRIGGERED | LEVEL_ASSERT | DELIVER_INIT);
    HalpSendCommand(ApicId, LEVEL_TRIGGERED | DELIVER_INIT);
    HalpStall(10000);
    for (ULONG i = 0; i < 2; i++) {
        HalpSendCommand(ApicId, LEVEL_ASSERT | DELIVER_STARTUP | Page);
        HalpStall(200);
    }
}
