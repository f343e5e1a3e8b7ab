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

typedef struct _EPROCESS {
    KPROCESS Pcb;                           // 0x000
    ULONG64 ProcessLock;                    // 0x438
    HANDLE UniqueProcessId;                 // 0x440
    LIST_ENTRY ActiveProcessLinks;          // 0x448
    UCHAR Reserved458[0x4B8 - 0x458];
    PTOKEN Token;                           // 0x4B8 (Windows: an EX_FAST_REF)
    UCHAR Reserved4C0[0x520 - 0x4C0];
    PVOID SectionBaseAddress;               // 0x520
    UCHAR Reserved528[0x540 - 0x528];
    HANDLE InheritedFromUniqueProcessId;    // 0x540
    PVOID OwnerProcessId;                   // 0x548
    PVOID Peb;                              // 0x550
    UCHAR Reserved558[0x5A8 - 0x558];
    CHAR ImageFileName[15];                 // 0x5A8
    UCHAR PriorityClass;                    // 0x5B7
    UCHAR Reserved5B8[0x5E0 - 0x5B8];
    LIST_ENTRY ThreadListHead;              // 0x5E0
    ULONG ActiveThreads;                    // 0x5F0
    UCHAR Reserved5F4[0xA40 - 0x5F4];
    ULONG64 NextUserStack;                  // ours, past Windows' fields
} EPROCESS, *PEPROCESS;
FIELD_AT(EPROCESS, UniqueProcessId, EPROCESS_UniqueProcessId);
FIELD_AT(EPROCESS, ActiveProcessLinks, EPROCESS_ActiveProcessLinks);
FIELD_AT(EPROCESS, Token, EPROCESS_Token);
FIELD_AT(EPROCESS, SectionBaseAddress, EPROCESS_SectionBaseAddress);
FIELD_AT(EPROCESS, InheritedFromUniqueProcessId, EPROCESS_InheritedFromUniqueProcessId);
FIELD_AT(EPROCESS, Peb, EPROCESS_Peb);
FIELD_AT(EPROCESS, ImageFileName, EPROCESS_ImageFileName);
FIELD_AT(EPROCESS, ThreadListHead, EPROCESS_ThreadListHead);

typedef void (*PKSTART_ROUTINE)(PVOID Context);

typedef struct _ETHREAD {
    KTHREAD Tcb;                    // 0x000
    LARGE_INTEGER CreateTime;       // 0x430
    UCHAR Reserved438[0x450 - 0x438];
    PKSTART_ROUTINE StartAddress;   // 0x450
    UCHAR Reserved458[0x478 - 0x458];
    CLIENT_ID Cid;                  // 0x478
    UCHAR Reserved488[0x4E8 - 0x488];
    LIST_ENTRY ThreadListEntry;     // 0x4E8
    UCHAR Reserved4F8[0x8B8 - 0x4F8];
    PVOID StartContext;             // ours, past Windows' fields
    ULONG64 UserRip, UserRsp;
    PVOID Work; // the console command it carries out
    ULONG Role;
    CHAR Name[12];
} ETHREAD, *PETHREAD;
FIELD_AT(ETHREAD, Cid.UniqueProcess, ETHREAD_Cid_UniqueProcess);
FIELD_AT(ETHREAD, Cid.UniqueThread, ETHREAD_Cid_UniqueThread);
FIELD_AT(ETHREAD, ThreadListEntry, ETHREAD_ThreadListEntry);

extern PEPROCESS PsInitialSystemProcess;
extern LIST_ENTRY PsActiveProcessHead;
extern LIST_ENTRY PsLoadedModuleList;

// process.c
void PspInitializeProcesses(void);
PEPROCESS PspCreateProcess(const CHAR *Name, PTOKEN Token, ULONG64 Root);
ULONG64 PspNextId(void);
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
    ULONG64 NtdllBase, NtdllSize;
    ULONG64 ProgramBase, ProgramSize;
} PSP_USER_LAYOUT;
extern PSP_USER_LAYOUT PspUserLayout;
void PspChooseUserLayout(void);
PEPROCESS PspStartProgram(const CHAR *Name, PTOKEN Token, const ULONG *Roles, ULONG Threads);

// userimage.c
NTSTATUS MiMapUserImage(ULONG64 Root, const void *File, SIZE_T FileSize, ULONG64 Base);
ULONG64 MiFindFileExport(const void *File, SIZE_T FileSize, const CHAR *Name);

// peb.c
void PspBuildPeb(PEPROCESS Process, const CHAR *Name);
PVOID PspBuildTeb(PEPROCESS Process, CLIENT_ID Cid, ULONG64 StackBase, ULONG64 StackLimit);

// modules.c
void PsInitializeLoadedModuleList(void);

BOOLEAN SeSinglePrivilegeCheck(ULONG Privilege, KPROCESSOR_MODE PreviousMode);

#endif
