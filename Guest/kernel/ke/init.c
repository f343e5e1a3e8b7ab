// The kernel's first steps, on the idle thread: processor, memory, processes,
// devices, console; then idle.

#include "../include/console.h"
#include "../include/guard.h"
#include "../include/hal.h"
#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/po.h"
#include "../include/ps.h"
#include "../include/rtl.h"
#include "../../common/build.h"

extern UCHAR KiIdleStack[];

// ntoskrnl's exported build number: 0xF0000000 marks a free build, as Windows'
// does.
ULONG NtBuildNumber = 0xF0000000 | NT_BUILD;

static ETHREAD KiInitialThread;

static TOKEN KiSystemToken = {"system", 1ull << SE_SHUTDOWN_PRIVILEGE};
static TOKEN KiServiceToken = {"service", 1ull << SE_SHUTDOWN_PRIVILEGE};
static TOKEN KiUserToken = {"user", 0};

// What the threads of the two programs are for.
static const ULONG KiServiceRoles[] = {WorkPrivileged, WorkPrivileged, WorkPrivileged,
                                       WorkPrivileged};
static const ULONG KiUserRoles[] = {WorkUnprivileged, WorkUnprivileged, WorkUnprivileged,
                                    WorkUnprivileged, WorkBusy};

// The first thread that is not idle: what needs to wait is started here.
static void KiPhase1Initialization(PVOID Context)
{
    (void)Context;
    PspChooseUserLayout();
    ConInitializeWork();
    PspStartProgram("smss.exe", &KiServiceToken, KiServiceRoles, ARRAY_COUNT(KiServiceRoles));
    PspStartProgram("app.exe", &KiUserToken, KiUserRoles, ARRAY_COUNT(KiUserRoles));
    PopRegisterDrivers();
    MiFreeInitializationCode();
    ConRecordCode();
    ConInitializeLoad();
    KiGuardStart();
    // From here on pageable code is where Windows has it before it is called.
    MiInitializePaging();
    MmTrimPageableCode(MmTrimToTransition);
    ConStart();
    PspExitThread();
}

INIT_CODE void KiInitializeKernel(const BOOT_BLOCK *Block)
{
    KiInitializeBootProcessor();
    MiBootBlock = Block;
    HalpInitializeSerial((USHORT)Block->serialPort);
    RtlSeedRandom(Block->randomSeed[0], Block->randomSeed[1]);

    MiInitializeFrames(Block);
    MiInitializeSpaces(Block);
    MiInitializePool();
    KiInitializeSharedData();
    KeCompactServiceTable();

    PspInitializeProcesses();
    PsInitialSystemProcess = PspCreateProcess("System", &KiSystemToken, MiSystemRoot());
    PspAdoptIdleThread(&KiInitialThread, KiIdleStack, KiIdleStack + KERNEL_STACK_SIZE);
    PsInitializeLoadedModuleList();

    HalpInitializePic();
    HalpInitializeAcpi();
    HalpMapLocalApic();
    HalpInitializeLocalApic(TRUE);
    HalpCalibrateTimer();
    KiStartOtherProcessors();
    HalpInitializeClock();
    HalpStartTimer();
    PspCreateThread(PsInitialSystemProcess, "phase1", KiPhase1Initialization, NULL);
    KiIdleLoop();
}
