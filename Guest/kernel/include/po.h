// Power: the service, what it asks of the drivers, and the hardware.

#ifndef VIGIL_PO_H
#define VIGIL_PO_H

#include "ntdef.h"

// Values from wdm.h.
typedef enum {
    PowerActionNone,
    PowerActionReserved,
    PowerActionSleep,
    PowerActionHibernate,
    PowerActionShutdown,
    PowerActionShutdownReset,
    PowerActionShutdownOff,
    PowerActionWarmEject,
    PowerActionDisplayOff,
} POWER_ACTION;

typedef enum {
    PowerSystemUnspecified,
    PowerSystemWorking,
    PowerSystemSleeping1,
    PowerSystemSleeping2,
    PowerSystemSleeping3,
    PowerSystemHibernate,
    PowerSystemShutdown,
    PowerSystemMaximum,
} SYSTEM_POWER_STATE;

NTSTATUS NtSetSystemPowerState(POWER_ACTION SystemAction, SYSTEM_POWER_STATE MinSystemState, ULONG Flags);
NTSTATUS ZwSetSystemPowerState(POWER_ACTION SystemAction, SYSTEM_POWER_STATE MinSystemState, ULONG Flags);

// Entries to and returns from NtSetSystemPowerState itself, the nested call
// of a user-mode caller included.
extern volatile ULONG64 PopEntries, PopReturns;

// reentry.c: how a checked user-mode call reaches the Zw stub in the build
// with the deep shape.
NTSTATUS PopRequestFromUserMode(POWER_ACTION Action, SYSTEM_POWER_STATE State, ULONG Flags);

// drivers.c
typedef NTSTATUS (*POP_DRIVER_CALLBACK)(POWER_ACTION Action, SYSTEM_POWER_STATE State);
void PopRegisterDrivers(void);
void PopSlowDown(ULONG Milliseconds);
void PopRefuse(BOOLEAN Refuse, NTSTATUS Status);
NTSTATUS PopQueryDrivers(POWER_ACTION Action, SYSTEM_POWER_STATE State);

// suspension.c
typedef enum { PopKindSleep, PopKindHibernate, PopKindHybrid } POP_KIND;
NTSTATUS PopSuspend(POP_KIND Kind, POWER_ACTION Action, SYSTEM_POWER_STATE State);
void PopFirstAfterWake(void);

// transition.c
NTSTATUS PopPerformTransition(POWER_ACTION Action, SYSTEM_POWER_STATE State);

#endif
