// The services this kernel implements, and the private one's contract.

#ifndef VIGIL_NT_H
#define VIGIL_NT_H

#include "ntdef.h"
#include "../../common/command.h"

NTSTATUS NtClose(HANDLE Handle);
NTSTATUS NtDelayExecution(BOOLEAN Alertable, PLARGE_INTEGER Interval);
NTSTATUS NtYieldExecution(void);
NTSTATUS NtNullSyscall(void);
NTSTATUS NtTerminateThread(HANDLE Thread, NTSTATUS Status);
NTSTATUS NtQuerySystemInformation(ULONG Class, PVOID Buffer, ULONG Length, PULONG ReturnLength);
NTSTATUS NtQueryInformationProcess(HANDLE Process, ULONG Class, PVOID Buffer,
                                   ULONG Length, PULONG ReturnLength);
NTSTATUS NtWaitForCommand(USER_COMMAND *Command, const ULONG64 *Result);

#endif
