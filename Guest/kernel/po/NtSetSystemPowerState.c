// NtSetSystemPowerState. Not exported; in PAGELK, as on Windows.
//
// What it rejects follows the oldest published shape of the function (Windows
// 7, in the CAMI pattern `NtSetSystemPowerState64.yaml`: MinSystemState - 1
// above 5, SystemAction - 1 above 6, reserved flags). Flag bits that winnt.h
// gives a meaning to are accepted.

#include "../include/ke.h"
#include "../include/po.h"
#include "../include/ps.h"

#define RESERVED_FLAGS 0x00FFFFC0u

volatile ULONG64 PopEntries, PopReturns;

#ifdef VIGIL_REENTRY_DEEP
#define PopReenter PopRequestFromUserMode
#else
#define PopReenter ZwSetSystemPowerState
#endif

PAGELK_CODE NTSTATUS NtSetSystemPowerState(POWER_ACTION SystemAction,
                                           SYSTEM_POWER_STATE MinSystemState, ULONG Flags)
{
    NTSTATUS Status;

    __atomic_add_fetch(&PopEntries, 1, __ATOMIC_SEQ_CST);

    if ((ULONG)MinSystemState - 1 > PowerSystemShutdown - 1 ||
        (ULONG)SystemAction - 1 > PowerActionWarmEject - 1 || (Flags & RESERVED_FLAGS)) {
        Status = STATUS_INVALID_PARAMETER;
    } else if (KiCurrentThread()->PreviousMode != KernelMode) {
        // A user-mode caller must hold the privilege; then the request is made
        // again, by the kernel itself.
        if (SeSinglePrivilegeCheck(SE_SHUTDOWN_PRIVILEGE, KiCurrentThread()->PreviousMode))
            Status = PopReenter(SystemAction, MinSystemState, Flags);
        else
            Status = STATUS_PRIVILEGE_NOT_HELD;
    } else {
        Status = PopQueryDrivers(SystemAction, MinSystemState);
        if (NT_SUCCESS(Status))
            Status = PopPerformTransition(SystemAction, MinSystemState);
    }

    __atomic_add_fetch(&PopReturns, 1, __ATOMIC_SEQ_CST);
    return Status;
}
