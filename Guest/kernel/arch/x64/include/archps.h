// x64: processes and threads, as Windows 10 19041 to 19045 have them (see
// offsets.h), and where a process's own memory is.

#ifndef VIGIL_ARCHPS_H
#define VIGIL_ARCHPS_H

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
    ULONG_PTR UserIp, UserSp;
    PVOID Work; // the console command it carries out
    ULONG Role;
    CHAR Name[12];
} ETHREAD, *PETHREAD;
FIELD_AT(ETHREAD, Cid.UniqueProcess, ETHREAD_Cid_UniqueProcess);
FIELD_AT(ETHREAD, Cid.UniqueThread, ETHREAD_Cid_UniqueThread);
FIELD_AT(ETHREAD, ThreadListEntry, ETHREAD_ThreadListEntry);

// On 64 KiB boundaries: the first place and how many there are.
#define PSP_NTDLL_BASE 0x7FF800000000ull
#define PSP_NTDLL_PLACES 0x70000
#define PSP_PROGRAM_BASE 0x7FF600000000ull
#define PSP_PROGRAM_PLACES 0x10000
#define PSP_PEB_BASE 0x1000000000ull
#define PSP_PEB_PLACES 0x400000
#define PSP_PEB_DISTANCE 0x10000
#define PSP_TEB_DISTANCE 0x2000 // from one to the next, behind the PEB
#define PSP_STACKS(peb) ((peb) + 0x1000000)
#define PSP_UNUSED_REGION 0x500000000ull // two where nothing of a process is
#define PSP_OTHER_UNUSED_REGION 0x600000000ull

#endif
