// Processes and threads.

#ifndef VIGIL_PS_H
#define VIGIL_PS_H

#include "ke.h"

typedef struct {
    HANDLE UniqueProcess, UniqueThread;
} CLIENT_ID;

// Far simpler than Windows' token: which privileges are held and enabled.
typedef struct {
    CHAR Name[16];
    ULONG64 Privileges; // bit n: privilege n, as wdm.h numbers them
} TOKEN, *PTOKEN;
#define SE_SHUTDOWN_PRIVILEGE 19

typedef void (*PKSTART_ROUTINE)(PVOID Context);

#include "archps.h"

extern PEPROCESS PsInitialSystemProcess;
extern LIST_ENTRY PsActiveProcessHead;
extern LIST_ENTRY PsLoadedModuleList;

// process.c
void PspInitializeProcesses(void);
PEPROCESS PspCreateProcess(const CHAR *Name, PTOKEN Token, ULONG_PTR Root);
ULONG_PTR PspNextId(void);
PEPROCESS PsGetCurrentProcess(void);

// thread.c
PETHREAD PspCreateThread(PEPROCESS Process, const CHAR *Name, PKSTART_ROUTINE Start, PVOID Context);
void PspAdoptIdleThread(PETHREAD Thread, PVOID StackLimit, PVOID StackBase);
PETHREAD PspCreateUserThread(PEPROCESS Process, ULONG Role);
NORETURN void PspExitThread(void);
void PspReapThreads(void); // gives back what ended ones leave
NTSTATUS PsCreateSystemThread(HANDLE *ThreadHandle, ULONG DesiredAccess, PVOID ObjectAttributes,
                              HANDLE ProcessHandle, CLIENT_ID *ClientId,
                              PKSTART_ROUTINE StartRoutine, PVOID StartContext);
NTSTATUS PsTerminateSystemThread(NTSTATUS ExitStatus);

// program.c: a process from the bundled program's image.
typedef struct {
    ULONG_PTR NtdllBase, NtdllSize;
    ULONG_PTR ProgramBase, ProgramSize;
} PSP_USER_LAYOUT;
extern PSP_USER_LAYOUT PspUserLayout;
const void *PspModule(ULONG Index, SIZE_T *Size);
void PspChooseUserLayout(void);
PEPROCESS PspStartProgram(const CHAR *Name, PTOKEN Token, const ULONG *Roles, ULONG Threads);

// userimage.c
NTSTATUS MiMapUserImage(ULONG_PTR Root, const void *File, SIZE_T FileSize, ULONG_PTR Base);
ULONG MiFindFileExport(const void *File, SIZE_T FileSize, const CHAR *Name);

// arch/*/newthread.c
ULONG_PTR PspInitialUserStack(PEPROCESS Process, ULONG_PTR Base); // what the thread begins with
void PspPublishSystemCall(void); // to programs, once ntdll's place is drawn

// peb.c
void PspBuildPeb(PEPROCESS Process, const CHAR *Name);
PVOID PspBuildTeb(PEPROCESS Process, CLIENT_ID Cid, ULONG_PTR StackBase, ULONG_PTR StackLimit);

// modules.c
void PsInitializeLoadedModuleList(void);

BOOLEAN SeSinglePrivilegeCheck(ULONG Privilege, KPROCESSOR_MODE PreviousMode);

#endif
