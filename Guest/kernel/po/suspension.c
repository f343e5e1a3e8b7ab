// Sleep, hibernation, and both at once: one at a time, and the clock afterwards.

#include "../include/console.h"
#include "../include/guard.h"
#include "../include/hal.h"
#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/po.h"

static volatile LONG PopUnderWay;
static volatile BOOLEAN PopImageWritten;

static void PopWriteImage(void)
{
    PopImageWritten = FALSE;
    KI_LOW_START Where = KiWakingPlace();
    PopImageWritten = MmWriteImage(&Where);
}

// Run by the boot processor, all others parked; each returns only if nothing
// came of it.
static void PopSleepNow(void)
{
    HalSuspendToRam();
}

static void PopHibernateNow(void)
{
    HalpDrainSerial();
    PopWriteImage();
    if (PopImageWritten)
        HalPowerOffHibernated();
}

static void PopHybridNow(void)
{
    PopWriteImage();
    if (!PopImageWritten)
        return;
    MmTakePoolAway();
    HalSuspendToRam();
    MmReturnPool();
}

// The boot processor's first act, before any of its state is back.
void PopFirstAfterWake(void)
{
    MmCloseImageWindow();
    MmReturnPool();
}

static const struct {
    const CHAR *Name;
    ULONG State; // of ACPI
    BOOLEAN Image, MovesPool;
    KI_SLEEP_ROUTINE *Now;
} PopKinds[] = {
    [PopKindSleep] = {"sleep", 3, FALSE, FALSE, PopSleepNow},
    [PopKindHibernate] = {"hibernate", 4, TRUE, FALSE, PopHibernateNow},
    [PopKindHybrid] = {"hybrid-sleep", 3, TRUE, TRUE, PopHybridNow},
};

static NTSTATUS PopPrepare(POP_KIND Kind)
{
    NTSTATUS Status = STATUS_SUCCESS;
    if (PopKinds[Kind].State == 3 && (!HalpAcpi.Sleep[3].Known || !HalpAcpi.Facs))
        return STATUS_NOT_SUPPORTED;
    if (PopKinds[Kind].Image)
        Status = MmPrepareImage();
    if (NT_SUCCESS(Status) && !HalCanSleep(PopKinds[Kind].State == 3 ? 3 : 5))
        Status = STATUS_DEVICE_POWER_FAILURE;
    if (NT_SUCCESS(Status) && PopKinds[Kind].MovesPool)
        Status = MmPreparePoolMove();
    return Status;
}

// As Windows: who comes while another's is under way is told so.
PAGELK_CODE NTSTATUS PopSuspend(POP_KIND Kind, POWER_ACTION Action, SYSTEM_POWER_STATE State)
{
    if (__atomic_exchange_n(&PopUnderWay, 1, __ATOMIC_SEQ_CST))
        return STATUS_ALREADY_COMMITTED;
    NTSTATUS Status = PopPrepare(Kind);
    if (NT_SUCCESS(Status)) {
        ConPrint("! %s action=%u state=%u", PopKinds[Kind].Name, Action, State);
        ULONG64 Before = HalQueryRealTimeClock();
        if (KiSuspend(PopKinds[Kind].Now))
            KeAdvanceAfterSleep(HalQueryRealTimeClock() - Before);
        else
            Status = STATUS_DEVICE_POWER_FAILURE;
        if (PopKinds[Kind].MovesPool)
            MmFinishPoolMove();
        // Memory is ahead of the image now.
        if (PopKinds[Kind].Image)
            MmDiscardImage();
        KiGuardCheckResumed();
        if (NT_SUCCESS(Status))
            ConPrint("! awake");
    }
    __atomic_store_n(&PopUnderWay, 0, __ATOMIC_SEQ_CST);
    return Status;
}
