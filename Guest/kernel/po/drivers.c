// The drivers: asked in the order of their registration whether the machine
// may leave its state. The last can be told, from the console, to refuse.

#include "../include/ke.h"
#include "../include/po.h"

#define DRIVERS_MAXIMUM 8

static POP_DRIVER_CALLBACK PopDrivers[DRIVERS_MAXIMUM];
static ULONG PopDriverCount;
static volatile NTSTATUS PopRefusal; // STATUS_SUCCESS: it agrees

static void PopRegisterDriver(POP_DRIVER_CALLBACK Callback)
{
    if (PopDriverCount < DRIVERS_MAXIMUM)
        PopDrivers[PopDriverCount++] = Callback;
}

static NTSTATUS DiskPower(POWER_ACTION Action, SYSTEM_POWER_STATE State)
{
    (void)Action;
    (void)State;
    return STATUS_SUCCESS;
}

static NTSTATUS NetworkPower(POWER_ACTION Action, SYSTEM_POWER_STATE State)
{
    // As if the device took its time: the caller waits at PASSIVE_LEVEL.
    LARGE_INTEGER Interval = {.QuadPart = -10000};
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

PAGED_CODE_SECTION NTSTATUS PopQueryDrivers(POWER_ACTION Action, SYSTEM_POWER_STATE State)
{
    for (ULONG i = 0; i < PopDriverCount; i++) {
        NTSTATUS Status = PopDrivers[i](Action, State);
        if (!NT_SUCCESS(Status))
            return Status;
    }
    return STATUS_SUCCESS;
}
