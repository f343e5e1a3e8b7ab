// x86: processes and threads, as Windows 7 SP1 has them (see offsets.h), and where a
// process's own memory is.

#ifndef VIGIL_ARCHPS_H
#define VIGIL_ARCHPS_H

typedef struct _EPROCESS {
    KPROCESS Pcb;                           // 0x000
    ULONG ProcessLock;                      // 0x098
    UCHAR Reserved09C[0x0B4 - 0x09C];
    HANDLE UniqueProcessId;                 // 0x0B4
    LIST_ENTRY ActiveProcessLinks;          // 0x0B8
    UCHAR Reserved0C0[0x0F8 - 0x0C0];
    PTOKEN Token;                           // 0x0F8 (Windows: an EX_FAST_REF)
    UCHAR Reserved0FC[0x12C - 0x0FC];
    PVOID SectionBaseAddress;               // 0x12C
    UCHAR Reserved130[0x140 - 0x130];
    HANDLE InheritedFromUniqueProcessId;    // 0x140
    UCHAR Reserved144[0x16C - 0x144];
    CHAR ImageFileName[15];                 // 0x16C
    UCHAR PriorityClass;                    // 0x17B
    UCHAR Reserved17C[0x188 - 0x17C];
    LIST_ENTRY ThreadListHead;              // 0x188
    UCHAR Reserved190[0x198 - 0x190];
    ULONG ActiveThreads;                    // 0x198
    UCHAR Reserved19C[0x1A8 - 0x19C];
    PVOID Peb;                              // 0x1A8
    UCHAR Reserved1AC[0x2C0 - 0x1AC];
    ULONG_PTR NextUserStack;                // ours, past Windows' fields
} EPROCESS, *PEPROCESS;
FIELD_AT(EPROCESS, UniqueProcessId, EPROCESS_UniqueProcessId);
FIELD_AT(EPROCESS, ActiveProcessLinks, EPROCESS_ActiveProcessLinks);
FIELD_AT(EPROCESS, Token, EPROCESS_Token);
FIELD_AT(EPROCESS, SectionBaseAddress, EPROCESS_SectionBaseAddress);
FIELD_AT(EPROCESS, InheritedFromUniqueProcessId, EPROCESS_InheritedFromUniqueProcessId);
FIELD_AT(EPROCESS, ImageFileName, EPROCESS_ImageFileName);
FIELD_AT(EPROCESS, ThreadListHead, EPROCESS_ThreadListHead);
FIELD_AT(EPROCESS, ActiveThreads, EPROCESS_ActiveThreads);
FIELD_AT(EPROCESS, Peb, EPROCESS_Peb);

typedef struct _ETHREAD {
    KTHREAD Tcb;                    // 0x000
    LARGE_INTEGER CreateTime;       // 0x200
    UCHAR Reserved208[0x218 - 0x208];
    PKSTART_ROUTINE StartAddress;   // 0x218
    UCHAR Reserved21C[0x22C - 0x21C];
    CLIENT_ID Cid;                  // 0x22C
    UCHAR Reserved234[0x268 - 0x234];
    LIST_ENTRY ThreadListEntry;     // 0x268
    UCHAR Reserved270[0x2B8 - 0x270];
    PVOID StartContext;             // ours, past Windows' fields
    ULONG_PTR UserIp, UserSp;
    PVOID Work; // the console command it carries out
    ULONG Role;
    CHAR Name[12];
} ETHREAD, *PETHREAD;
FIELD_AT(ETHREAD, StartAddress, ETHREAD_StartAddress);
FIELD_AT(ETHREAD, Cid.UniqueProcess, ETHREAD_Cid_UniqueProcess);
FIELD_AT(ETHREAD, Cid.UniqueThread, ETHREAD_Cid_UniqueThread);
FIELD_AT(ETHREAD, ThreadListEntry, ETHREAD_ThreadListEntry);

// On 64 KiB boundaries: the first place and how many there are. The PEB is on a
// page of the last 64 KiB but one, with the TEBs behind it.
#define PSP_NTDLL_BASE 0x77000000
#define PSP_NTDLL_PLACES 0xF0
#define PSP_PROGRAM_BASE 0x00400000
#define PSP_PROGRAM_PLACES 0x100
#define PSP_PEB_BASE 0x7FFD0000
#define PSP_PEB_PLACES 8
#define PSP_PEB_DISTANCE 0x1000
#define PSP_TEB_DISTANCE 0x1000 // from one to the next, behind the PEB
#define PSP_STACKS(peb) ((void)(peb), 0x00120000)
#define PSP_UNUSED_REGION 0x05000000 // two where nothing of a process is
#define PSP_OTHER_UNUSED_REGION 0x06000000

#endif
