// The serial console: commands in, answers out, one line each.

#ifndef VIGIL_CONSOLE_H
#define VIGIL_CONSOLE_H

#include "rtl.h"

#define CONSOLE_LINE_MAXIMUM 256
#define CONSOLE_TAG_MAXIMUM 12

// Which command an answer belongs to: the `#7` that came before it.
typedef struct {
    CHAR Text[CONSOLE_TAG_MAXIMUM]; // "" or "#7 "
} CONSOLE_TAG;

typedef struct {
    CONSOLE_TAG Tag;
    ULONG Count;
    CHAR *Words[8];
} CONSOLE_COMMAND;

// console.c
void ConStart(void);
void ConPrint(const CHAR *Format, ...) PRINTF_LIKE(1, 2);                          // one line
void ConAnswer(const CONSOLE_TAG *Tag, const CHAR *Format, ...) PRINTF_LIKE(2, 3); // "ok …", "error …"

// commands.c
void ConDispatch(CONSOLE_COMMAND *Command);
BOOLEAN ConSwitch(CONSOLE_COMMAND *Command, BOOLEAN *On); // FALSE: has been answered
extern const CHAR *const ConVariant;

// symbols.c, threads.c
void ConSymbols(CONSOLE_COMMAND *Command);
BOOLEAN ConFindSymbol(const CHAR *Name, ULONG_PTR *Address);
void ConThreads(CONSOLE_COMMAND *Command);

// codecheck.c
void ConRecordCode(void);
void ConCheckCode(CONSOLE_COMMAND *Command);
BOOLEAN ConIsCodeClean(void);
BOOLEAN ConIsConstant(ULONG_PTR Address); // in a section that stays and nobody writes

// attack.c
void ConAttack(CONSOLE_COMMAND *Command);
void ConNear(CONSOLE_COMMAND *Command);

// load.c
typedef enum { LoadCalls, LoadPages, LoadThreads, LoadKinds } LOAD_KIND;
void ConInitializeLoad(void);
void ConLoad(CONSOLE_COMMAND *Command);
ULONG64 ConRemapPage(ULONG_PTR Address, ULONG64 Rounds); // the time it took, in 100 ns
extern volatile ULONG64 ConLoadPages, ConLoadThreads;

// watch.c: what is in the guest that is not its own, whenever it is asked for a transition.
void ConWatch(CONSOLE_COMMAND *Command);
void ConSeen(CONSOLE_COMMAND *Command);
void ConLookWhileAsked(ULONG Action, ULONG State);

// status.c
void ConTime(CONSOLE_COMMAND *Command);
void ConPool(CONSOLE_COMMAND *Command);
void ConProcessors(CONSOLE_COMMAND *Command);

// work.c: commands that another thread carries out.
typedef enum { WorkKernel, WorkPrivileged, WorkUnprivileged, WorkBusy, WorkRoles } WORK_ROLE;
typedef enum { WorkPower, WorkPowerDirect, WorkPowerInterrupt, WorkLoop, WorkRemap } WORK_KIND;
void ConInitializeWork(void);
BOOLEAN ConQueueWork(WORK_ROLE Role, WORK_KIND Kind, const CONSOLE_TAG *Tag,
                     ULONG64 A, ULONG64 B, ULONG64 C);
struct _ETHREAD;
void ConAbandonWork(struct _ETHREAD *Thread);
void ConSetBusy(BOOLEAN Busy);

#endif
