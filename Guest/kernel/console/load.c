// Load on request: system calls, page-table changes, threads that come and go.

#include "../include/console.h"
#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/ps.h"
#include "../include/rtl.h"

#define WINDOW_PAGES 16
#define THREADS_AT_A_TIME 4

volatile ULONG64 ConLoadPages, ConLoadThreads;
static KEVENT ConLoadEvents[LoadKinds];

// Maps frames into a window, uses them there, takes them away a round later. That
// the memory seen is the frame just mapped shows that no processor this thread
// was on kept the translation of the last round.
static void ConPageLoad(PVOID Context)
{
    LARGE_INTEGER Breath = {.QuadPart = -10000};
    ULONG_PTR Window = MmReserveSystemPages(WINDOW_PAGES * PAGE_SIZE);
    ULONG64 Frames[WINDOW_PAGES] = {0};
    (void)Context;

    for (ULONG64 Round = 1;; Round++) {
        KeWaitForSingleObject(&ConLoadEvents[LoadPages], 0, KernelMode, FALSE, NULL);
        for (ULONG Page = 0; Page < WINDOW_PAGES; Page++) {
            ULONG_PTR Address = Window + Page * PAGE_SIZE;
            if (Frames[Page]) {
                MmUnmapPage(MiSystemRoot(), Address);
                MmFreeFrame(Frames[Page]);
                ConLoadPages++;
            }
            ULONG64 Frame = Frames[Page] = MmAllocateFrame();
            if (!Frame)
                continue;
            MmMapPage(MiSystemRoot(), Address, (MMPTE)Frame | MM_KERNEL_RW);
            *(volatile ULONG64 *)Address = Round << 8 | Page;
            if (*(volatile ULONG64 *)MmPhysicalToVirtual(Frame) != (Round << 8 | Page))
                KeBugCheckEx(MEMORY_MANAGEMENT, 0x56470001, Address, (ULONG_PTR)Frame, (ULONG_PTR)Round);
        }
        KeDelayExecutionThread(KernelMode, FALSE, &Breath);
    }
}

// As fast as it goes: two entries written a round, and all processors told once.
ULONG64 ConRemapPage(ULONG_PTR Address, ULONG64 Rounds)
{
    ULONG64 Frame = MmAllocateFrame(), Start = KeQueryInterruptTime();
    if (!Frame)
        return 0;
    for (ULONG64 Round = 0; Round < Rounds; Round++) {
        MmMapPage(MiSystemRoot(), Address, (MMPTE)Frame | MM_KERNEL_RW);
        *(volatile ULONG64 *)Address = Round;
        MmUnmapPage(MiSystemRoot(), Address);
    }
    ULONG64 Time = KeQueryInterruptTime() - Start;
    MmFreeFrame(Frame);
    return Time;
}

static void ConShortLife(PVOID Context)
{
    LARGE_INTEGER Breath = {.QuadPart = -10000};
    KeDelayExecutionThread(KernelMode, FALSE, &Breath);
    KeReleaseSemaphore(Context, 0, 1, FALSE);
    PsTerminateSystemThread(STATUS_SUCCESS);
}

static void ConThreadLoad(PVOID Context)
{
    static KSEMAPHORE Ended;
    (void)Context;

    KeInitializeSemaphore(&Ended, 0, THREADS_AT_A_TIME);
    for (;;) {
        ULONG Begun = 0;
        KeWaitForSingleObject(&ConLoadEvents[LoadThreads], 0, KernelMode, FALSE, NULL);
        for (ULONG i = 0; i < THREADS_AT_A_TIME; i++) {
            if (NT_SUCCESS(PsCreateSystemThread(NULL, 0, NULL, NULL, NULL, ConShortLife, &Ended)))
                Begun++;
        }
        for (ULONG i = 0; i < Begun; i++) {
            KeWaitForSingleObject(&Ended, 0, KernelMode, FALSE, NULL);
            ConLoadThreads++;
        }
    }
}

void ConInitializeLoad(void)
{
    for (ULONG i = 0; i < LoadKinds; i++)
        KeInitializeEvent(&ConLoadEvents[i], NotificationEvent, FALSE);
    PspCreateThread(PsInitialSystemProcess, "load-pages", ConPageLoad, NULL);
    PspCreateThread(PsInitialSystemProcess, "load-thread", ConThreadLoad, NULL);
}

static void ConSwitchLoad(ULONG Kind, BOOLEAN On)
{
    if (Kind == LoadCalls)
        ConSetBusy(On);
    else if (On)
        KeSetEvent(&ConLoadEvents[Kind], 0, FALSE);
    else
        KeResetEvent(&ConLoadEvents[Kind]);
}

// load on|off [KIND…]: all kinds where none is named.
void ConLoad(CONSOLE_COMMAND *Command)
{
    static const CHAR *const Names[LoadKinds] = {"calls", "pages", "threads"};
    BOOLEAN On, Chosen[LoadKinds] = {FALSE};

    if (!ConSwitch(Command, &On))
        return;
    for (ULONG Word = 2; Word < Command->Count; Word++) {
        ULONG Kind = 0;
        while (Kind < LoadKinds && !RtlStringEqual(Command->Words[Word], Names[Kind]))
            Kind++;
        if (Kind == LoadKinds) {
            ConAnswer(&Command->Tag, "error no load is called %s", Command->Words[Word]);
            return;
        }
        Chosen[Kind] = TRUE;
    }
    for (ULONG Kind = 0; Kind < LoadKinds; Kind++) {
        if (Chosen[Kind] || Command->Count == 2)
            ConSwitchLoad(Kind, On);
    }
    ConAnswer(&Command->Tag, "ok load=%s", On ? "on" : "off");
}
