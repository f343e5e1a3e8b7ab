// Processes: the list of them, and making one.

#include "../include/mm.h"
#include "../include/ps.h"
#include "../include/rtl.h"

PEPROCESS PsInitialSystemProcess;
LIST_ENTRY PsActiveProcessHead;

// Process and thread identifiers come from one sequence, multiples of four, as
// on Windows; the System process, made first, has 4.
ULONG_PTR PspNextId(void)
{
    static volatile ULONG_PTR Last;
    return __atomic_add_fetch(&Last, 4, __ATOMIC_SEQ_CST);
}

INIT_CODE void PspInitializeProcesses(void)
{
    InitializeListHead(&PsActiveProcessHead);
}

PEPROCESS PspCreateProcess(const CHAR *Name, PTOKEN Token, ULONG_PTR Root)
{
    PEPROCESS Process = ExAllocatePoolWithTag(NonPagedPoolNx, sizeof *Process, 'corP');
    if (!Process || !Root)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 4, 0, 0, 0);
    Process->Pcb.Header.Type = 3;
    InitializeListHead(&Process->Pcb.Header.WaitListHead);
    InitializeListHead(&Process->Pcb.ThreadListHead);
    InitializeListHead(&Process->ThreadListHead);
    Process->Pcb.DirectoryTableBase = Root;
    Process->UniqueProcessId = (HANDLE)PspNextId();
    if (PsInitialSystemProcess)
        Process->InheritedFromUniqueProcessId = PsInitialSystemProcess->UniqueProcessId;
    Process->Token = Token;
    RtlStringCopy(Process->ImageFileName, sizeof Process->ImageFileName, Name);

    KIRQL Irql = KiAcquireDispatcherLock();
    InsertTailList(&PsActiveProcessHead, &Process->ActiveProcessLinks);
    KiReleaseDispatcherLock(Irql);
    return Process;
}

// Kernel-mode callers hold every privilege.
BOOLEAN SeSinglePrivilegeCheck(ULONG Privilege, KPROCESSOR_MODE PreviousMode)
{
    if (PreviousMode == KernelMode)
        return TRUE;
    return (PsGetCurrentProcess()->Token->Privileges >> Privilege & 1) != 0;
}
