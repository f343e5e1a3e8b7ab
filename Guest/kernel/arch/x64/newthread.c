// x64: what a thread's kernel stack holds before it runs.

#include "../../include/mm.h"
#include "../../include/ps.h"
#include "../../include/rtl.h"

// The reset state: FCW at 0, MXCSR at 24 (Intel SDM volume 1, table 10-2).
void KiInitializeStateSave(PKTHREAD Thread)
{
    Thread->StateSaveArea = (PUCHAR)Thread->StackBase - KERNEL_STACK_RESERVE;
    Thread->InitialStack = Thread->StateSaveArea;
    RtlZeroMemory(Thread->StateSaveArea, KERNEL_STACK_RESERVE);
    *(USHORT *)Thread->StateSaveArea = 0x37F;
    *(ULONG *)((PUCHAR)Thread->StateSaveArea + 24) = 0x1F80;
}

// What KiSwapContext will pop: R15, R14, R13, R12, RSI, RDI, RBX, RBP, and
// the return to KiThreadStartup.
PVOID KiInitialKernelStack(PVOID InitialStack, PVOID Start, PVOID Context)
{
    ULONG64 *Top = (ULONG64 *)InitialStack - 10;
    Top[2] = (ULONG64)Context;
    Top[3] = (ULONG64)Start;
    Top[8] = (ULONG64)KiThreadStartup;
    return Top;
}

// As after a call: the stack is 8 below a 16-byte boundary, home space above. The
// argument is in a register.
ULONG_PTR PspInitialUserStack(PEPROCESS Process, ULONG_PTR Base)
{
    (void)Process;
    return Base - 0x28;
}

// Programs find `syscall` by themselves.
void PspPublishSystemCall(void)
{
}
