// What an interrupt or an exception leads to.

#include "../include/console.h"
#include "../include/hal.h"
#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/ps.h"

static void KiDeviceInterrupt(ULONG Line)
{
    if (HalpBeginInterrupt(Line)) {
        if (Line == HAL_SERIAL_LINE)
            HalpSerialInterrupt();
        HalpEndInterrupt(Line);
    }
}

static void KiClockInterrupt(void)
{
    if (KeGetCurrentPrcb()->Number == 0)
        KeUpdateSystemTime(HalpElapsedTime());
    KiCheckQuantum();
}

// At the level that the vector stands for; the 8259's come at any.
static void KiInterrupt(PKTRAP_FRAME Frame, ULONG Vector)
{
    KIRQL Level = (KIRQL)(Vector >> 4);

    Frame->PreviousIrql = KeGetCurrentIrql();
    if (Level > Frame->PreviousIrql)
        KiSetIrql(Level);
    switch (Vector) {
    case DISPATCH_VECTOR:
        // Ended before the processor may go to another thread.
        HalpEndApicInterrupt();
        KiEnableInterrupts();
        KiDispatchInterrupt();
        KiDisableInterrupts();
        break;
    case CLOCK_VECTOR:
        KiClockInterrupt();
        HalpEndApicInterrupt();
        break;
    case IPI_VECTOR:
        KiIpiInterrupt();
        HalpEndApicInterrupt();
        break;
    default:
        KiDeviceInterrupt(Vector - HAL_VECTOR_BASE);
    }
    KiSetIrql(Frame->PreviousIrql);
}

static BOOLEAN KiIsInterrupt(ULONG Vector)
{
    return (Vector >= HAL_VECTOR_BASE && Vector < HAL_VECTOR_BASE + 16) ||
           Vector == DISPATCH_VECTOR || Vector == CLOCK_VECTOR || Vector == IPI_VECTOR;
}

// A program's own fault ends its thread; nothing else in the guest is harmed.
static void KiUserException(PKTRAP_FRAME Frame, ULONG Vector)
{
    PETHREAD Thread = (PETHREAD)KiCurrentThread();
    KiEnableInterrupts();
    ConPrint("! exception vector=%u process=%s thread=%llu rip=0x%llx address=0x%llx",
             Vector, ((PEPROCESS)Thread->Tcb.Process)->ImageFileName,
             (ULONG64)(ULONG_PTR)Thread->Cid.UniqueThread, (ULONG64)KiFrameIp(Frame),
             (ULONG64)Frame->FaultAddress);
    ConAbandonWork(Thread);
    PspExitThread();
}

// A caller of a service with arguments on its stack may have none there.
// Windows' page-fault handler knows the copying loop in the same way.
static BOOLEAN KiIsServiceCopyFault(PKTRAP_FRAME Frame, ULONG Vector)
{
    return (Vector == 13 || Vector == 14) && KiFrameIp(Frame) >= (ULONG_PTR)KiSystemServiceCopyStart &&
           KiFrameIp(Frame) < (ULONG_PTR)KiSystemServiceCopyEnd;
}

// The kernel's own access to a page that is absent; in a pageable section it is
// brought in. At DISPATCH_LEVEL or above nothing could be, wherever it lies.
static void KiKernelPageFault(PKTRAP_FRAME Frame)
{
    KIRQL Irql = KeGetCurrentIrql();

    if (Irql >= DISPATCH_LEVEL)
        KeBugCheck2(IRQL_NOT_LESS_OR_EQUAL, Frame->FaultAddress, Irql, Frame->ErrorCode >> 1 & 1,
                    KiFrameIp(Frame), Frame);
    // With interrupts off, too, it must not be: the code there counts on being alone.
    if (Frame->EFlags & 0x200) {
        KiEnableInterrupts();
        if (!(Frame->ErrorCode & 1) && MmAccessFault(Frame->FaultAddress))
            return;
    }
    KeBugCheck2(PAGE_FAULT_IN_NONPAGED_AREA, Frame->FaultAddress, Frame->ErrorCode >> 1 & 1,
                KiFrameIp(Frame), 0, Frame);
}

static NORETURN void KiKernelException(PKTRAP_FRAME Frame, ULONG Vector)
{
    switch (Vector) {
    case 2:
        KiFreezeIfBugCheck();
        KeBugCheck2(NMI_HARDWARE_FAILURE, 0, 0, KiFrameIp(Frame), 0, Frame);
    case 3:
        // STATUS_BREAKPOINT with no debugger.
        KeBugCheck2(KMODE_EXCEPTION_NOT_HANDLED, 0x80000003, KiFrameIp(Frame), 0, 0, Frame);
    default:
        KeBugCheck2(UNEXPECTED_KERNEL_MODE_TRAP, Vector, KiFrameIp(Frame), KiFrameSp(Frame),
                    Frame->ErrorCode, Frame);
    }
}

void KiDispatchTrap(PKTRAP_FRAME Frame, ULONG Vector)
{
    if (KiIsInterrupt(Vector))
        KiInterrupt(Frame, Vector);
    else if (Vector >= 32)
        return; // unexpected, or the APIC's spurious one, which is not to be ended
    else if (Frame->SegCs & 1 && Vector != 2 && Vector != 8 && Vector != 18)
        KiUserException(Frame, Vector);
    else if (KiIsServiceCopyFault(Frame, Vector))
        KiSetFrameIp(Frame, KiSystemServiceCopyFault);
    else if (Vector == 14)
        KiKernelPageFault(Frame);
    else
        KiKernelException(Frame, Vector);
}
