// The services that do something, beside the power one.

#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/nt.h"
#include "../include/ps.h"
#include "../include/rtl.h"

// What a user-mode caller names is looked at before it is touched.
static BOOLEAN NtpIsAccessible(const void *Address, SIZE_T Size, BOOLEAN Write)
{
    if (KiCurrentThread()->PreviousMode == KernelMode)
        return TRUE;
    return MmIsUserRangeValid(PsGetCurrentProcess()->Pcb.DirectoryTableBase, (ULONG_PTR)Address,
                              Size, Write);
}

// There are no handles: none is valid.
NTSTATUS NtClose(HANDLE Handle)
{
    (void)Handle;
    return STATUS_INVALID_HANDLE;
}

NTSTATUS NtNullSyscall(void)
{
    return STATUS_SUCCESS;
}

NTSTATUS NtYieldExecution(void)
{
    KeYieldProcessorThread();
    return STATUS_SUCCESS;
}

NTSTATUS NtDelayExecution(BOOLEAN Alertable, PLARGE_INTEGER Interval)
{
    if (!NtpIsAccessible(Interval, sizeof *Interval, FALSE))
        return STATUS_ACCESS_VIOLATION;
    LARGE_INTEGER Captured = *(volatile LARGE_INTEGER *)Interval;
    return KeDelayExecutionThread(KiCurrentThread()->PreviousMode, Alertable, &Captured);
}

NTSTATUS NtTerminateThread(HANDLE Thread, NTSTATUS Status)
{
    (void)Status;
    // Only the caller itself: NULL, or the pseudo-handle -2.
    if (Thread != NULL && Thread != (HANDLE)-2)
        return STATUS_INVALID_HANDLE;
    PspExitThread();
}

static NTSTATUS NtpReturn(PVOID Buffer, ULONG Length, PULONG ReturnLength, const void *From,
                          ULONG Size)
{
    if (ReturnLength) {
        if (!NtpIsAccessible(ReturnLength, sizeof *ReturnLength, TRUE))
            return STATUS_ACCESS_VIOLATION;
        *ReturnLength = Size;
    }
    if (Length < Size)
        return STATUS_INFO_LENGTH_MISMATCH;
    if (!NtpIsAccessible(Buffer, Size, TRUE))
        return STATUS_ACCESS_VIOLATION;
    RtlCopyMemory(Buffer, From, Size);
    return STATUS_SUCCESS;
}

// Class 0, SystemBasicInformation, is all there is.
NTSTATUS NtQuerySystemInformation(ULONG Class, PVOID Buffer, ULONG Length, PULONG ReturnLength)
{
    struct {
        ULONG Reserved, TimerResolution, PageSize, NumberOfPhysicalPages;
        ULONG LowestPhysicalPage, HighestPhysicalPage, AllocationGranularity;
        ULONG_PTR MinimumUserModeAddress, MaximumUserModeAddress, ActiveProcessors;
        CHAR NumberOfProcessors;
    } Information = {0};

    if (Class != 0)
        return STATUS_INVALID_INFO_CLASS;
    Information.TimerResolution = 10000;
    Information.PageSize = PAGE_SIZE;
    Information.NumberOfPhysicalPages = (ULONG)(MiBootBlock->directMapSize >> PAGE_SHIFT);
    Information.HighestPhysicalPage = Information.NumberOfPhysicalPages - 1;
    Information.LowestPhysicalPage = 1;
    Information.AllocationGranularity = 0x10000;
    Information.MinimumUserModeAddress = 0x10000;
    Information.MaximumUserModeAddress = MmUserProbeAddress - 1;
    Information.ActiveProcessors = ((ULONG_PTR)1 << KeNumberProcessors) - 1;
    Information.NumberOfProcessors = KeNumberProcessors;
    return NtpReturn(Buffer, Length, ReturnLength, &Information, sizeof Information);
}

// Class 0, ProcessBasicInformation, of the caller itself (pseudo-handle -1).
NTSTATUS NtQueryInformationProcess(HANDLE Process, ULONG Class, PVOID Buffer, ULONG Length,
                                   PULONG ReturnLength)
{
    PEPROCESS Current = PsGetCurrentProcess();
    struct {
        NTSTATUS ExitStatus;
        PVOID PebBaseAddress;
        ULONG_PTR AffinityMask;
        LONG BasePriority;
        HANDLE UniqueProcessId, InheritedFromUniqueProcessId;
    } Information = {0};

    if (Process != (HANDLE)-1)
        return STATUS_INVALID_HANDLE;
    if (Class != 0)
        return STATUS_INVALID_INFO_CLASS;
    Information.ExitStatus = (NTSTATUS)0x103; // STATUS_PENDING: it runs
    Information.PebBaseAddress = Current->Peb;
    Information.AffinityMask = ((ULONG_PTR)1 << KeNumberProcessors) - 1;
    Information.BasePriority = 8;
    Information.UniqueProcessId = Current->UniqueProcessId;
    Information.InheritedFromUniqueProcessId = Current->InheritedFromUniqueProcessId;
    return NtpReturn(Buffer, Length, ReturnLength, &Information, sizeof Information);
}
