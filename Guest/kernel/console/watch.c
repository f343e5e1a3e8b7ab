// Whether others have left something in the guest when NtSetSystemPowerState
// begins its work: the code that stays against its state at boot, and blocks of
// the pool with Vigil's tag.

#include "../include/console.h"
#include "../include/mm.h"
#include "../include/rtl.h"

#define VIGIL_TAG 'lgiV' // "Vigl"

static volatile BOOLEAN ConWatching;
static volatile BOOLEAN ConSeenModified;
static volatile ULONG64 ConSeenBlocks, ConSeenCalls;

static const CHAR *ConCodeState(BOOLEAN Modified)
{
    return Modified ? "modified" : "clean";
}

static ULONG64 ConCountBlocks(void)
{
    MM_POOL_STATISTICS Statistics;
    MmQueryPool(&Statistics);
    for (ULONG i = 0; i < MM_POOL_TAGS; i++) {
        if (Statistics.Tags[i].Tag == VIGIL_TAG)
            return Statistics.Tags[i].Blocks;
    }
    return 0;
}

// Blocks first: they are counted in no time.
void ConLookWhileAsked(ULONG Action, ULONG State)
{
    if (!ConWatching)
        return;
    ULONG64 Blocks = ConCountBlocks();
    BOOLEAN Modified = !ConIsCodeClean();
    if (Blocks > ConSeenBlocks)
        ConSeenBlocks = Blocks;
    if (Modified)
        ConSeenModified = TRUE;
    ConSeenCalls++;
    ConPrint("! seen code=%s blocks=%llu action=%u state=%u", ConCodeState(Modified), Blocks,
             Action, State);
}

void ConWatch(CONSOLE_COMMAND *Command)
{
    BOOLEAN On = RtlStringEqual(Command->Words[2], "on");
    if (!RtlStringEqual(Command->Words[1], "power")) {
        ConAnswer(&Command->Tag, "error nothing is called %s", Command->Words[1]);
        return;
    }
    if (!On && !RtlStringEqual(Command->Words[2], "off")) {
        ConAnswer(&Command->Tag, "error say on or off");
        return;
    }
    if (On) {
        ConSeenModified = FALSE;
        ConSeenBlocks = ConSeenCalls = 0;
    }
    ConWatching = On;
    ConAnswer(&Command->Tag, "ok watch=%s", On ? "on" : "off");
}

// The worst of all calls since `watch power on`.
void ConSeen(CONSOLE_COMMAND *Command)
{
    ConAnswer(&Command->Tag, "ok code=%s blocks=%llu calls=%llu", ConCodeState(ConSeenModified),
              ConSeenBlocks, ConSeenCalls);
}
