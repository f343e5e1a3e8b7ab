// The commands. Each answers with any number of lines that begin with two
// spaces and one that begins with `ok` or `error`.

#include "../include/console.h"
#include "../include/guard.h"
#include "../include/mm.h"
#include "../include/po.h"
#include "../include/rtl.h"
#include "../../common/build.h"

typedef struct {
    const CHAR *Name;
    ULONG Minimum, Maximum; // words after the name
    void (*Run)(CONSOLE_COMMAND *Command);
    const CHAR *Usage;
} COMMAND_ENTRY;

static BOOLEAN ConNumber(CONSOLE_COMMAND *Command, ULONG Word, ULONG64 Limit, ULONG64 *Value)
{
    if (RtlParseNumber(Command->Words[Word], Value) && *Value <= Limit)
        return TRUE;
    ConAnswer(&Command->Tag, "error not a number in range: %s", Command->Words[Word]);
    return FALSE;
}

BOOLEAN ConSwitch(CONSOLE_COMMAND *Command, BOOLEAN *On)
{
    *On = RtlStringEqual(Command->Words[1], "on");
    if (*On || RtlStringEqual(Command->Words[1], "off"))
        return TRUE;
    ConAnswer(&Command->Tag, "error say on or off");
    return FALSE;
}

static void ConQueue(CONSOLE_COMMAND *Command, WORK_ROLE Role, WORK_KIND Kind, ULONG64 A,
                     ULONG64 B, ULONG64 C)
{
    if (!ConQueueWork(Role, Kind, &Command->Tag, A, B, C))
        ConAnswer(&Command->Tag, "error too many commands in flight");
}

static void ConPing(CONSOLE_COMMAND *Command)
{
    ConAnswer(&Command->Tag, "ok pong");
}

static void ConVersion(CONSOLE_COMMAND *Command)
{
    ConAnswer(&Command->Tag, "ok variant=%s build=%u", ConVariant, NT_BUILD);
}

static void ConPower(CONSOLE_COMMAND *Command)
{
    static const struct {
        const CHAR *Who;
        WORK_ROLE Role;
        WORK_KIND Kind;
    } Callers[] = {
        {"kernel", WorkKernel, WorkPower},
        {"kernel-direct", WorkKernel, WorkPowerDirect},
        {"user", WorkPrivileged, WorkPower},
        {"unprivileged", WorkUnprivileged, WorkPower},
        {"user-interrupt", WorkPrivileged, WorkPowerInterrupt},
    };
    ULONG64 Action, State, Flags;

    if (!ConNumber(Command, 2, 0xFFFFFFFF, &Action) ||
        !ConNumber(Command, 3, 0xFFFFFFFF, &State) || !ConNumber(Command, 4, 0xFFFFFFFF, &Flags))
        return;
    for (ULONG i = 0; i < ARRAY_COUNT(Callers); i++) {
        if (RtlStringEqual(Command->Words[1], Callers[i].Who) &&
            (Callers[i].Kind != WorkPowerInterrupt || KI_HAS_SERVICE_INTERRUPT)) {
            ConQueue(Command, Callers[i].Role, Callers[i].Kind, Action, State, Flags);
            return;
        }
    }
    ConAnswer(&Command->Tag, "error nobody is called %s", Command->Words[1]);
}

static void ConCounts(CONSOLE_COMMAND *Command)
{
    ConAnswer(&Command->Tag, "ok entries=%llu returns=%llu", PopEntries, PopReturns);
}

static void ConRefuse(CONSOLE_COMMAND *Command)
{
    BOOLEAN On;
    ULONG64 Status = 0xC00002D3; // STATUS_POWER_STATE_INVALID

    if (!ConSwitch(Command, &On))
        return;
    if (Command->Count > 2 && !ConNumber(Command, 2, 0xFFFFFFFF, &Status))
        return;
    if (NT_SUCCESS(Status)) {
        ConAnswer(&Command->Tag, "error not a failure: 0x%08x", (ULONG)Status);
        return;
    }
    PopRefuse(On, (NTSTATUS)Status);
    ConAnswer(&Command->Tag, On ? "ok refusing status=0x%08x" : "ok agreeing", (ULONG)Status);
}

static void ConSlow(CONSOLE_COMMAND *Command)
{
    ULONG64 Milliseconds;

    if (!ConNumber(Command, 1, 60000, &Milliseconds))
        return;
    PopSlowDown((ULONG)Milliseconds);
    ConAnswer(&Command->Tag, "ok slow=%llu", Milliseconds);
}

static void ConWork(CONSOLE_COMMAND *Command)
{
    ULONG64 Count;
    if (ConNumber(Command, 1, 0xFFFFFFFF, &Count))
        ConQueue(Command, WorkUnprivileged, WorkLoop, Count, 0, 0);
}

static void ConBusy(CONSOLE_COMMAND *Command)
{
    BOOLEAN On;
    if (!ConSwitch(Command, &On))
        return;
    ConSetBusy(On);
    ConAnswer(&Command->Tag, "ok busy=%s", On ? "on" : "off");
}

static void ConGuard(CONSOLE_COMMAND *Command)
{
    static const CHAR *const Modes[] = {
        [KiGuardOff] = "off", [KiGuardAlways] = "on", [KiGuardResuming] = "resume"};
    for (ULONG i = 0; i < ARRAY_COUNT(Modes); i++) {
        if (RtlStringEqual(Command->Words[1], Modes[i])) {
            KiGuardSwitch(i);
            ConAnswer(&Command->Tag, "ok guard=%s", Modes[i]);
            return;
        }
    }
    ConAnswer(&Command->Tag, "error say on, off or resume");
}

static void ConRemap(CONSOLE_COMMAND *Command)
{
    ULONG64 Rounds;
    if (ConNumber(Command, 1, 0xFFFFFFFF, &Rounds))
        ConQueue(Command, WorkKernel, WorkRemap, Rounds, 0, 0);
}

static void ConMove(CONSOLE_COMMAND *Command)
{
    ULONG_PTR Address;
    ULONG64 Number, New, Old;

    if (!ConFindSymbol(Command->Words[1], &Address)) {
        if (!ConNumber(Command, 1, ~(ULONG_PTR)0, &Number))
            return;
        Address = (ULONG_PTR)Number;
    }
    Address = PAGE_OF(Address);
    if (!ConIsConstant(Address)) {
        ConAnswer(&Command->Tag, "error not a page of code or constants: 0x%llx", (ULONG64)Address);
        return;
    }
    Old = MmMoveConstantPage(Address, &New);
    if (Old)
        ConAnswer(&Command->Tag, "ok page=0x%llx old=0x%llx new=0x%llx", (ULONG64)Address, Old, New);
    else
        ConAnswer(&Command->Tag, "error not moved");
}

static void ConTrim(CONSOLE_COMMAND *Command)
{
    static const struct {
        const CHAR *Name;
        MM_TRIM_KIND Kind;
    } Kinds[] = {{"transition", MmTrimToTransition},
                 {"prototype", MmTrimToPrototype},
                 {"shared", MmTrimToSharedPage}};
    const CHAR *Name = Command->Count > 1 ? Command->Words[1] : Kinds[0].Name;

    for (ULONG i = 0; i < ARRAY_COUNT(Kinds); i++) {
        if (RtlStringEqual(Name, Kinds[i].Name)) {
            ConAnswer(&Command->Tag, "ok pages=%u", MmTrimPageableCode(Kinds[i].Kind));
            return;
        }
    }
    ConAnswer(&Command->Tag, "error nothing is called %s", Name);
}

static void ConCrash(CONSOLE_COMMAND *Command)
{
    if (Command->Count > 1 && RtlStringEqual(Command->Words[1], "irql")) {
        // An address that is absent, where nothing could be brought in.
        KeRaiseIrqlToDpcLevel();
        *(volatile ULONG *)0x10000 = 0;
    } else if (Command->Count > 1 && RtlStringEqual(Command->Words[1], "pool")) {
        PVOID Block = ExAllocatePoolWithTag(NonPagedPoolNx, 100, 'tseT');
        ExFreePoolWithTag(Block, 'tseT');
        ExFreePoolWithTag(Block, 'tseT');
    } else if (Command->Count > 1 && RtlStringEqual(Command->Words[1], "plain")) {
        KeBugCheck(MANUALLY_INITIATED_CRASH);
    } else if (Command->Count > 1) {
        ConAnswer(&Command->Tag, "error nothing is called %s", Command->Words[1]);
        return;
    }
    KeBugCheckEx(MANUALLY_INITIATED_CRASH, 0, 0, 0, 0);
}

static void ConHelp(CONSOLE_COMMAND *Command);

static const COMMAND_ENTRY ConCommands[] = {
    {"help", 0, 0, ConHelp, ""},
    {"ping", 0, 0, ConPing, ""},
    {"version", 0, 0, ConVersion, ""},
    {"power", 4, 4, ConPower, "kernel|kernel-direct|user|unprivileged ACTION STATE FLAGS"},
    {"counts", 0, 0, ConCounts, ""},
    {"refuse", 1, 2, ConRefuse, "on [NTSTATUS] | off"},
    {"slow", 1, 1, ConSlow, "MILLISECONDS"},
    {"symbols", 0, 0, ConSymbols, ""},
    {"threads", 0, 0, ConThreads, ""},
    {"processors", 0, 0, ConProcessors, ""},
    {"time", 0, 0, ConTime, ""},
    {"check", 0, 0, ConCheckCode, ""},
    {"watch", 2, 2, ConWatch, "power on|off"},
    {"seen", 0, 0, ConSeen, ""},
    {"work", 1, 1, ConWork, "COUNT"},
    {"busy", 1, 1, ConBusy, "on|off"},
    {"load", 1, 4, ConLoad, "on|off [calls] [pages] [threads]"},
    {"pool", 0, 0, ConPool, ""},
    {"guard", 1, 1, ConGuard, "on|off|resume"},
    {"remap", 1, 1, ConRemap, "COUNT"},
    {"move", 1, 1, ConMove, "NAME|ADDRESS"},
    {"trim", 0, 1, ConTrim, "[transition|prototype|shared]"},
    {"attack", 1, 2, ConAttack, "code|translation|idt|service|ntdll|region [off]"},
    {"near", 1, 2, ConNear, "code|translation|idt|service|ntdll|region [off]"},
    {"crash", 0, 1, ConCrash, "[plain|irql|pool]"},
};

static void ConHelp(CONSOLE_COMMAND *Command)
{
    for (ULONG i = 0; i < ARRAY_COUNT(ConCommands); i++)
        ConPrint("  %s %s", ConCommands[i].Name, ConCommands[i].Usage);
    ConAnswer(&Command->Tag, "ok");
}

void ConDispatch(CONSOLE_COMMAND *Command)
{
    for (ULONG i = 0; Command->Count && i < ARRAY_COUNT(ConCommands); i++) {
        const COMMAND_ENTRY *Entry = &ConCommands[i];
        ULONG Arguments = Command->Count - 1;
        if (!RtlStringEqual(Command->Words[0], Entry->Name))
            continue;
        if (Arguments < Entry->Minimum || Arguments > Entry->Maximum)
            ConAnswer(&Command->Tag, "error usage: %s %s", Entry->Name, Entry->Usage);
        else
            Entry->Run(Command);
        return;
    }
    ConAnswer(&Command->Tag, "error unknown command");
}
