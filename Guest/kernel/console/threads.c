// The processes and their threads.

#include "../include/console.h"
#include "../include/ps.h"
#include "../include/rtl.h"

typedef struct {
    PETHREAD Thread;
    ULONG_PTR Id;
    CHAR Name[sizeof((PETHREAD)0)->Name];
    UCHAR State;
} THREAD_ROW;

// Threads come and go while this runs, processes never end: the next thread is
// sought by its place, not by a link kept across a line of output, and what is
// to be said of it is taken while it cannot go.
static BOOLEAN ConThreadAt(PEPROCESS Process, ULONG Place, THREAD_ROW *Row)
{
    BOOLEAN Found = FALSE;
    KIRQL Irql = KiAcquireDispatcherLock();
    for (PLIST_ENTRY Link = Process->ThreadListHead.Flink; Link != &Process->ThreadListHead;
         Link = Link->Flink) {
        if (Place-- == 0) {
            PETHREAD Thread = CONTAINING_RECORD(Link, ETHREAD, ThreadListEntry);
            Row->Thread = Thread;
            Row->Id = (ULONG_PTR)Thread->Cid.UniqueThread;
            Row->State = Thread->Tcb.State;
            RtlStringCopy(Row->Name, sizeof Row->Name, Thread->Name);
            Found = TRUE;
            break;
        }
    }
    KiReleaseDispatcherLock(Irql);
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
                 (ULONG64)(ULONG_PTR)Process->UniqueProcessId, Process->ImageFileName,
                 (ULONG64)(ULONG_PTR)Process, (ULONG64)Process->Pcb.DirectoryTableBase,
                 (ULONG64)(ULONG_PTR)Process->Peb);
        THREAD_ROW Row;
        for (ULONG Place = 0; ConThreadAt(Process, Place, &Row); Place++)
            ConPrint("  thread=%llu process=%llu name=%s address=0x%llx state=%s",
                     (ULONG64)Row.Id, (ULONG64)(ULONG_PTR)Process->UniqueProcessId, Row.Name,
                     (ULONG64)(ULONG_PTR)Row.Thread,
                     States[Row.State % ARRAY_COUNT(States)]);
    }
    ConAnswer(&Command->Tag, "ok");
}
