// Carrying a transition out, once every driver has agreed.

#include "../include/console.h"
#include "../include/hal.h"
#include "../include/po.h"

PAGELK_CODE NTSTATUS PopPerformTransition(POWER_ACTION Action, SYSTEM_POWER_STATE State)
{
    switch (Action) {
    case PowerActionShutdownReset:
        ConPrint("! reset action=%u state=%u", Action, State);
        HalReturnToFirmware();
    case PowerActionShutdown:
    case PowerActionShutdownOff:
        // With a minimum of hibernation it is fast startup's shutdown.
        if (State == PowerSystemHibernate)
            return PopSuspend(PopKindHibernate, Action, State);
        ConPrint("! power-off action=%u state=%u", Action, State);
        HalPowerOff();
    case PowerActionWarmEject:
        // Asks the drivers and leaves the machine as it is.
        return STATUS_SUCCESS;
    case PowerActionSleep:
        // Any of the three sleeping states is the one the machine has.
        if (State >= PowerSystemSleeping1 && State <= PowerSystemSleeping3)
            return PopSuspend(PopKindSleep, Action, State);
        return State == PowerSystemHibernate ? PopSuspend(PopKindHybrid, Action, State)
                                             : STATUS_NOT_SUPPORTED;
    case PowerActionHibernate:
        return State == PowerSystemHibernate ? PopSuspend(PopKindHibernate, Action, State)
                                             : STATUS_NOT_SUPPORTED;
    default:
        return STATUS_NOT_SUPPORTED;
    }
}
