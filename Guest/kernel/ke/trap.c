// What an interrupt or an exception leads to.

#include "../include/console.h"
#include "../include/hal.h"
#include "../include/ps.h"

static void KiInterrupt(PKTRAP_FRAME Frame, ULONG Line)
{
    Frame->PreviousIrql = KeGetCurrentIrql();
    KiWriteCr8(CLOCK_LEVEL);
    if (HalpBeginInterrupt(Line)) {
        if (Line == HAL_CLOCK_LINE)
            KeUpdateSystemTime(HalpElapsedTime());
        else if (Line == HAL_SERIAL_LINE)
            HalpSerialInterrupt();
        HalpEndInterrupt(Line);
    }
    KiWriteCr8(Frame->PreviousIrql);
    KiCheckPreemption(Frame);
}

// A program's own fault ends its thread; nothing else in the guest is harmed.
static void KiUserException(PKTRAP_FRAME Frame, ULONG Vector)
{
    PETHREAD Thread = (PETHREAD)KiCurrentThread();
    KiEnableInterrupts();
    ConPrint("! exception vector=%u process=%s thread=%llu rip=0x%llx address=0x%llx",
             Vector, ((PEPROCESS)Thread->Tcb.Process)->ImageFileName,
             (ULONG64)Thread->Cid.UniqueThread, Frame->Rip, Frame->FaultAddress);
    ConAbandonWork(Thread);
    PspExitThread();
}

// A caller of a service with arguments on its stack may have none there.
// Windows' page-fault handler knows the copying loop in the same way.
static BOOLEAN KiIsServiceCopyFault(PKTRAP_FRAME Frame, ULONG Vector)
{
    return (Vector == 13 || Vector == 14) && Frame->Rip >= (ULONG64)KiSystemServiceCopyStart &&
           Frame->Rip < (ULONG64)KiSystemServiceCopyEnd;
}

static NORETURN void KiKernelException(PKTRAP_FRAME Frame, ULONG Vector)
{
    switch (Vector) {
    case 2:
        KeBugCheckEx(NMI_HARDWARE_FAILURE, 0, 0, Frame->Rip, 0);
    case 14:
        // No page of the kernel is absent but by mistake. At DISPATCH_LEVEL
        // it could not even be brought in.
        if (KeGetCurrentIrql() >= DISPATCH_LEVEL)
            KeBugCheckEx(IRQL_NOT_LESS_OR_EQUAL, Frame->FaultAddress,
                         KeGetCurrentIrql(), Frame->ErrorCode >> 1 & 1, Frame->Rip);
        KeBugCheckEx(PAGE_FAULT_IN_NONPAGED_AREA, Frame->FaultAddress,
                     Frame->ErrorCode >> 1 & 1, Frame->Rip, 0);
    case 3:
        // STATUS_BREAKPOINT with no debugger.
        KeBugCheckEx(KMODE_EXCEPTION_NOT_HANDLED, 0x80000003, Frame->Rip, 0, 0);
    default:
        KeBugCheckEx(UNEXPECTED_KERNEL_MODE_TRAP, Vector, Frame->Rip, Frame->Rsp,
                     Frame->ErrorCode);
    }
}

void KiDispatchTrap(PKTRAP_FRAME Frame, ULONG Vector)
{
    if (Vector >= HAL_VECTOR_BASE && Vector < HAL_VECTOR_BASE + 16)
        KiInterrupt(Frame, Vector - HAL_VECTOR_BASE);
    else if (Vector >= 32)
        return; // unexpected interrupt: Windows counts it and goes on
    else if (Frame->SegCs & 1 && Vector != 2 && Vector != 8 && Vector != 18)
        KiUserException(Frame, Vector);
    else if (KiIsServiceCopyFault(Frame, Vector))
        Frame->Rip = (ULONG64)KiSystemServiceCopyFault;
    else
        KiKernelException(Frame, Vector);
}
