// The processes and their threads.

#include "../include/console.h"
#include "../include/ps.h"

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
