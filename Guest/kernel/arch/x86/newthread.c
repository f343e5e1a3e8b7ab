// x86: what a thread's kernel stack holds before it runs, and what a program is
// told about system calls.

#include "../../include/mm.h"
#include "../../include/ps.h"
#include "../../include/rtl.h"
#include "../../include/shareddata.h"

// The reset state: FCW at 0, MXCSR at 24 (Intel SDM volume 1, table 10-2). Every
// thread begins with the one service table that there is.
void KiInitializeStateSave(PKTHREAD Thread)
{
    PUCHAR Area = (PUCHAR)Thread->StackBase - NPX_FRAME_LENGTH;
    Thread->InitialStack = Thread->StackBase;
    Thread->ServiceTable = KeServiceDescriptorTable;
    RtlZeroMemory(Area, NPX_FRAME_LENGTH);
    *(USHORT *)Area = 0x37F;
    *(ULONG *)(Area + 24) = 0x1F80;
}

// What KiSwapContext will pop: ESI, EDI, EBX, EBP, the return to KiThreadStartup,
// and its own two arguments. Above is room for a trap frame, as for that of ring 3.
PVOID KiInitialKernelStack(PVOID InitialStack, PVOID Start, PVOID Context)
{
    ULONG *Top = (ULONG *)((PUCHAR)InitialStack - NPX_FRAME_LENGTH - KTRAP_FRAME_Size) - 8;
    Top[0] = (ULONG)Context;
    Top[2] = (ULONG)Start;
    Top[4] = (ULONG)KiThreadStartup;
    return Top;
}

// As after a call: nowhere to return to, and the argument.
ULONG_PTR PspInitialUserStack(PEPROCESS Process, ULONG_PTR Base)
{
    ULONG Top[2] = {0, (ULONG)Process->Peb};
    ULONG_PTR At = Base - 0x10;
    MmCopyToSpace(Process->Pcb.DirectoryTableBase, At, Top, sizeof Top);
    return At;
}

// The stubs of ntdll call what SharedUserData names: on a processor that has
// SYSENTER, KiFastSystemCall.
void PspPublishSystemCall(void)
{
    SIZE_T Size;
    const void *Ntdll = PspModule(1, &Size);
    SharedUserData->SystemCallStub =
        (ULONG)(PspUserLayout.NtdllBase + MiFindFileExport(Ntdll, Size, "KiFastSystemCall"));
    SharedUserData->SystemCallReturn =
        (ULONG)(PspUserLayout.NtdllBase + MiFindFileExport(Ntdll, Size, "KiFastSystemCallRet"));
}
