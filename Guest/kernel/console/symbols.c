// The truth, for tests: where things are, and which threads there are.

#include "../include/console.h"
#include "../include/mm.h"
#include "../include/nt.h"
#include "../include/po.h"
#include "../include/ps.h"

extern UCHAR KiSystemServiceStart[], KiSystemServiceRepeat[], KiSystemServiceCopyEnd[],
    KiSystemServiceExit[], KiServiceInternal[], KiServiceLinkage[], KiPageFault[];
extern NTSTATUS ZwQuerySystemInformation(void);
extern ULONG NtBuildNumber;

void ConSymbols(CONSOLE_COMMAND *Command)
{
    const struct {
        const CHAR *Name;
        ULONG64 Value;
    } Symbols[] = {
        {"ImageBase", MiBootBlock->kernelVirtualBase},
        {"ImageSize", MiBootBlock->kernelImageSize},
        {"ImagePhysicalBase", MiBootBlock->kernelPhysicalBase},
        {"DirectoryTableBase", MiSystemRoot()},
        {"PteBase", 0xFFFF000000000000ull | MiBootBlock->selfMapIndex << 39},
        {"NtSetSystemPowerState", (ULONG64)NtSetSystemPowerState},
        {"ZwSetSystemPowerState", (ULONG64)ZwSetSystemPowerState},
        {"KiSystemCall64", (ULONG64)KiSystemCall64},
        {"KiSystemServiceStart", (ULONG64)KiSystemServiceStart},
        {"KiSystemServiceRepeat", (ULONG64)KiSystemServiceRepeat},
        {"KiSystemServiceCopyEnd", (ULONG64)KiSystemServiceCopyEnd},
        {"KiSystemServiceExit", (ULONG64)KiSystemServiceExit},
        {"KiServiceInternal", (ULONG64)KiServiceInternal},
        {"KiServiceLinkage", (ULONG64)KiServiceLinkage},
        {"KiServiceTable", (ULONG64)KiServiceTable},
        {"KeServiceDescriptorTable", (ULONG64)KeServiceDescriptorTable},
        {"KeServiceDescriptorTableShadow", (ULONG64)KeServiceDescriptorTableShadow},
        {"KiPageFault", (ULONG64)KiPageFault},
        {"KeBugCheckEx", (ULONG64)KeBugCheckEx},
        {"KeDelayExecutionThread", (ULONG64)KeDelayExecutionThread},
        {"NtBuildNumber", (ULONG64)&NtBuildNumber},
        {"KPCR", (ULONG64)CONTAINING_RECORD(KeGetCurrentPrcb(), KPCR, Prcb)},
        {"IDT", (ULONG64)CONTAINING_RECORD(KeGetCurrentPrcb(), KPCR, Prcb)->IdtBase},
        {"PsInitialSystemProcess", (ULONG64)PsInitialSystemProcess},
        {"PsActiveProcessHead", (ULONG64)&PsActiveProcessHead},
        {"PsLoadedModuleList", (ULONG64)&PsLoadedModuleList},
        {"NtdllBase", PspUserLayout.NtdllBase},
        {"NtdllSize", PspUserLayout.NtdllSize},
        {"ProgramBase", PspUserLayout.ProgramBase},
    };

    for (ULONG i = 0; i < ARRAY_COUNT(Symbols); i++)
        ConPrint("  %s 0x%llx", Symbols[i].Name, Symbols[i].Value);
    ConAnswer(&Command->Tag, "ok");
}

// Threads come and go while this runs, processes never end: the next thread is
// sought by its place, not by a link kept across a line of output.
static PETHREAD ConThreadAt(PEPROCESS Process, ULONG Place)
{
    PETHREAD Found = NULL;
    ULONG64 Flags = KiAcquireDispatcherLock();
    for (PLIST_ENTRY Link = Process->ThreadListHead.Flink; Link != &Process->ThreadListHead;
         Link = Link->Flink) {
        if (Place-- == 0) {
            Found = CONTAINING_RECORD(Link, ETHREAD, ThreadListEntry);
            break;
        }
    }
    KiReleaseDispatcherLock(Flags);
    return Found;
}

void ConThreads(CONSOLE_COMMAND *Command)
{
    static const CHAR *const States[] = {"initialized", "ready",      "running",
                                         "standby",     "terminated", "waiting"};
    for (PLIST_ENTRY Link = PsActiveProcessHead.Flink; Link != &PsActiveProcessHead;
         Link = Link->Flink) {
        PEPROCESS Process = CONTAINING_RECORD(Link, EPROCESS, ActiveProcessLinks);
        ConPrint("  process=%llu name=%s address=0x%llx cr3=0x%llx peb=0x%llx",
                 (ULONG64)Process->UniqueProcessId, Process->ImageFileName, (ULONG64)Process,
                 Process->Pcb.DirectoryTableBase, (ULONG64)Process->Peb);
        PETHREAD Thread;
        for (ULONG Place = 0; (Thread = ConThreadAt(Process, Place)); Place++)
            ConPrint("  thread=%llu process=%llu name=%s address=0x%llx state=%s",
                     (ULONG64)Thread->Cid.UniqueThread, (ULONG64)Process->UniqueProcessId,
                     Thread->Name, (ULONG64)Thread,
                     States[Thread->Tcb.State % ARRAY_COUNT(States)]);
    }
    ConAnswer(&Command->Tag, "ok");
}
