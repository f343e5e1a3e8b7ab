// The drivers: asked in the order of their registration whether the machine
// may leave its state. From the console the second can be told to take its
// time, and the last to refuse.

#include "../include/console.h"
#include "../include/ke.h"
#include "../include/po.h"

#define DRIVERS_MAXIMUM 8

static POP_DRIVER_CALLBACK PopDrivers[DRIVERS_MAXIMUM];
static ULONG PopDriverCount;
static volatile NTSTATUS PopRefusal; // STATUS_SUCCESS: it agrees
static volatile LONGLONG PopSlowness = 10000; // in 100 ns

static void PopRegisterDriver(POP_DRIVER_CALLBACK Callback)
{
    if (PopDriverCount < DRIVERS_MAXIMUM)
        PopDrivers[PopDriverCount++] = Callback;
}

static NTSTATUS DiskPower(POWER_ACTION Action, SYSTEM_POWER_STATE State)
{
    // The first that NtSetSystemPowerState calls for a request that is none of
    // ring 3's.
    ConLookWhileAsked(Action, State);
    return STATUS_SUCCESS;
}

static NTSTATUS NetworkPower(POWER_ACTION Action, SYSTEM_POWER_STATE State)
{
    // As if the device took its time: the caller waits at PASSIVE_LEVEL.
    LARGE_INTEGER Interval = {.QuadPart = -PopSlowness};
    (void)Action;
    (void)State;
    KeDelayExecutionThread(KernelMode, FALSE, &Interval);
    return STATUS_SUCCESS;
}

static NTSTATUS ObstinatePower(POWER_ACTION Action, SYSTEM_POWER_STATE State)
{
    (void)Action;
    (void)State;
    return PopRefusal;
}

void PopRegisterDrivers(void)
{
    PopRegisterDriver(DiskPower);
    PopRegisterDriver(NetworkPower);
    PopRegisterDriver(ObstinatePower);
}

void PopRefuse(BOOLEAN Refuse, NTSTATUS Status)
{
    PopRefusal = Refuse ? Status : STATUS_SUCCESS;
}

void PopSlowDown(ULONG Milliseconds)
{
    PopSlowness = (LONGLONG)Milliseconds * 10000;
}

PAGED_CODE_SECTION NTSTATUS PopQueryDrivers(POWER_ACTION Action, SYSTEM_POWER_STATE State)
{
    for (ULONG i = 0; i < PopDriverCount; i++) {
        NTSTATUS Status = PopDrivers[i](Action, State);
        if (!NT_SUCCESS(Status))
            return Status;
    }
    return STATUS_SUCCESS;
}
