// The deep shape of the re-entry: two calls between NtSetSystemPowerState and
// the Zw stub. The direct shape has neither.

#ifdef VIGIL_REENTRY_DEEP

#include "../include/ke.h"
#include "../include/po.h"

#define PLAIN_CALL __attribute__((noinline, disable_tail_calls))

PAGELK_CODE PLAIN_CALL static NTSTATUS PopIssueRequest(POWER_ACTION Action,
                                                       SYSTEM_POWER_STATE State, ULONG Flags)
{
    return ZwSetSystemPowerState(Action, State, Flags);
}

PAGELK_CODE PLAIN_CALL NTSTATUS PopRequestFromUserMode(POWER_ACTION Action,
                                                       SYSTEM_POWER_STATE State, ULONG Flags)
{
    NTSTATUS Status = PopIssueRequest(Action, State, Flags);
    // Something to do after the call, so that it stays one at every -O.
    if (Status == STATUS_TIMEOUT)
        Status = STATUS_UNSUCCESSFUL;
    return Status;
}

#endif
