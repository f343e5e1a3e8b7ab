// x64: the structures that the architecture shapes, as Windows 10 19041 to 19045
// have them (see offsets.h), and what only the processor can say.

#ifndef VIGIL_ARCHKE_H
#define VIGIL_ARCHKE_H

typedef struct {
    DISPATCHER_HEADER Header;            // 0x000
    LIST_ENTRY ProfileListHead;          // 0x018
    ULONG_PTR DirectoryTableBase;        // 0x028
    LIST_ENTRY ThreadListHead;           // 0x030
    UCHAR Reserved040[0x438 - 0x040];
} KPROCESS, *PKPROCESS;
FIELD_AT(KPROCESS, DirectoryTableBase, KPROCESS_DirectoryTableBase);

typedef struct _KTRAP_FRAME {
    ULONG64 P1Home, P2Home, P3Home, P4Home, P5; // 0x000
    CHAR PreviousMode;                          // 0x028
    UCHAR PreviousIrql, FaultIndicator, ExceptionActive;
    ULONG MxCsr;                                // 0x02C
    ULONG64 Rax, Rcx, Rdx, R8, R9, R10, R11;    // 0x030
    ULONG64 GsBase;                             // 0x068
    ULONG64 Xmm[12];                            // 0x070
    ULONG64 FaultAddress;                       // 0x0D0
    ULONG64 DebugState[12];                     // 0x0D8
    ULONG64 TrapFrame;                          // 0x138
    ULONG64 Rbx, Rdi, Rsi, Rbp;                 // 0x140
    ULONG64 ErrorCode, Rip;                     // 0x160
    USHORT SegCs;                               // 0x170
    USHORT Fill0[3];
    ULONG EFlags, Fill1;                        // 0x178
    ULONG64 Rsp;                                // 0x180
    USHORT SegSs, Fill2[3];                     // 0x188
} KTRAP_FRAME, *PKTRAP_FRAME;
FIELD_AT(KTRAP_FRAME, PreviousMode, KTRAP_FRAME_PreviousMode);
FIELD_AT(KTRAP_FRAME, FaultAddress, KTRAP_FRAME_FaultAddress);
FIELD_AT(KTRAP_FRAME, TrapFrame, KTRAP_FRAME_TrapFrame);
FIELD_AT(KTRAP_FRAME, Rbx, KTRAP_FRAME_Rbx);
FIELD_AT(KTRAP_FRAME, Rip, KTRAP_FRAME_Rip);
FIELD_AT(KTRAP_FRAME, EFlags, KTRAP_FRAME_EFlags);
C_ASSERT(sizeof(KTRAP_FRAME) == KTRAP_FRAME_Size);

typedef struct _KTHREAD {
    DISPATCHER_HEADER Header;      // 0x000
    PVOID SListFaultAddress;       // 0x018
    ULONG64 QuantumTarget;         // 0x020, in clock ticks
    PVOID InitialStack;            // 0x028
    PVOID StackLimit, StackBase;   // 0x030
    ULONG64 ThreadLock;            // 0x040
    ULONG64 CycleTime;             // 0x048
    ULONG CurrentRunTime, ExpectedRunTime;
    PVOID KernelStack;             // 0x058
    PVOID StateSaveArea;           // 0x060
    PVOID SchedulingGroup;         // 0x068
    UCHAR WaitRegister, RunningNow, Alerted[2];
    ULONG MiscFlags;               // 0x074
    ULONG ThreadFlags;             // 0x078
    ULONG Reserved07C;
    ULONG SystemCallNumber;        // 0x080
    ULONG ReadyTime;
    PVOID FirstArgument;           // 0x088
    PKTRAP_FRAME TrapFrame;        // 0x090
    struct {
        LIST_ENTRY ApcListHead[2]; // 0x098
        PKPROCESS Process;         // 0x0B8
        UCHAR InProgressFlags, KernelApcPending, UserApcPending;
        SCHAR Priority;            // 0x0C3
        ULONG UserIdealProcessor;
    } ApcState;
    LONG_PTR WaitStatus;           // 0x0C8
    DISPATCHER_HEADER *WaitObject; // 0x0D0
    LIST_ENTRY WaitListEntry;      // 0x0D8, in the ready list or an object's
    PVOID Queue;                   // 0x0E8
    PVOID Teb;                     // 0x0F0
    ULONG64 DueTime;               // 0x0F8, interrupt time; 0: none
    LIST_ENTRY TimerListEntry;     // 0x100
    UCHAR Reserved110[0x184 - 0x110];
    UCHAR State;                   // 0x184
    UCHAR Reserved185[0x220 - 0x185];
    PKPROCESS Process;             // 0x220
    UCHAR Reserved228[0x232 - 0x228];
    CHAR PreviousMode;             // 0x232
    UCHAR Reserved233[0x430 - 0x233];
} KTHREAD, *PKTHREAD;
FIELD_AT(KTHREAD, InitialStack, KTHREAD_InitialStack);
FIELD_AT(KTHREAD, StackLimit, KTHREAD_StackLimit);
FIELD_AT(KTHREAD, StackBase, KTHREAD_StackBase);
FIELD_AT(KTHREAD, KernelStack, KTHREAD_KernelStack);
FIELD_AT(KTHREAD, StateSaveArea, KTHREAD_StateSaveArea);
FIELD_AT(KTHREAD, MiscFlags, KTHREAD_MiscFlags);
FIELD_AT(KTHREAD, ThreadFlags, KTHREAD_ThreadFlags);
FIELD_AT(KTHREAD, TrapFrame, KTHREAD_TrapFrame);
FIELD_AT(KTHREAD, ApcState, KTHREAD_ApcState);
FIELD_AT(KTHREAD, ApcState.Process, KTHREAD_ApcState_Process);
FIELD_AT(KTHREAD, WaitListEntry, KTHREAD_WaitListEntry);
FIELD_AT(KTHREAD, Teb, KTHREAD_Teb);
FIELD_AT(KTHREAD, State, KTHREAD_State);
FIELD_AT(KTHREAD, Process, KTHREAD_Process);
FIELD_AT(KTHREAD, PreviousMode, KTHREAD_PreviousMode);

// Intel SDM volume 3A, section 8.7: the 64-bit task-state segment.
typedef struct {
    ULONG Reserved0;
    ULONG64 Rsp[3];
    ULONG64 Reserved1;
    ULONG64 Ist[7];
    ULONG64 Reserved2;
    USHORT Reserved3, IoMapBase;
} __attribute__((packed)) KTSS;
C_ASSERT(sizeof(KTSS) == 104);

typedef struct {
    USHORT OffsetLow, Selector;
    UCHAR Ist, Attributes;
    USHORT OffsetMiddle;
    ULONG OffsetHigh, Reserved;
} KIDTENTRY;
C_ASSERT(sizeof(KIDTENTRY) == 16);

typedef struct {
    ULONG MxCsr;                       // 0x000
    UCHAR LegacyNumber, ReservedMustBeZero, InterruptRequest, IdleHalt;
    PKTHREAD CurrentThread;            // 0x008
    PKTHREAD NextThread;               // 0x010
    PKTHREAD IdleThread;               // 0x018
    UCHAR NestingLevel, ClockOwner, Pending[2];
    ULONG Number;                      // 0x024
    ULONG64 RspBase;                   // 0x028
    ULONG64 PrcbLock;                  // 0x030
    volatile UCHAR QuantumEnd;         // ours, from 0x038 on: it shall look for another thread
    UCHAR ApicId;
    volatile ULONG DpcRequests;        // KI_DPC_…
    UCHAR Reserved040[0x700 - 0x040];
} KPRCB, *PKPRCB;
FIELD_AT(KPRCB, CurrentThread, KPRCB_CurrentThread);
FIELD_AT(KPRCB, IdleThread, KPRCB_IdleThread);
FIELD_AT(KPRCB, Number, KPRCB_Number);
FIELD_AT(KPRCB, RspBase, KPRCB_RspBase);

typedef struct _KPCR {
    PVOID GdtBase;           // 0x000
    KTSS *TssBase;         // 0x008
    ULONG64 UserRsp;         // 0x010
    struct _KPCR *Self;      // 0x018
    PKPRCB CurrentPrcb;      // 0x020
    PVOID LockArray;         // 0x028
    PVOID Used_Self;         // 0x030
    KIDTENTRY *IdtBase;    // 0x038
    ULONG64 Unused[2];
    KIRQL Irql;              // 0x050
    UCHAR Reserved051[0x60 - 0x51];
    USHORT MajorVersion, MinorVersion; // 0x060
    UCHAR Reserved064[0x180 - 0x064];
    KPRCB Prcb;              // 0x180
} KPCR, *PKPCR;
FIELD_AT(KPCR, UserRsp, KPCR_UserRsp);
FIELD_AT(KPCR, Self, KPCR_Self);
FIELD_AT(KPCR, CurrentPrcb, KPCR_CurrentPrcb);
FIELD_AT(KPCR, IdtBase, KPCR_IdtBase);
FIELD_AT(KPCR, Irql, KPCR_Irql);
FIELD_AT(KPCR, Prcb, KPCR_Prcb);

FORCEINLINE PKPRCB KeGetCurrentPrcb(void)
{
    PKPRCB Prcb;
    __asm__ volatile("movq %%gs:%c1, %0" : "=r"(Prcb) : "i"(KPCR_CurrentPrcb));
    return Prcb;
}

FORCEINLINE PKTHREAD KiCurrentThread(void)
{
    PKTHREAD Thread;
    __asm__ volatile("movq %%gs:%c1, %0" : "=r"(Thread) : "i"(PCR_CurrentThread));
    return Thread;
}

FORCEINLINE KIRQL KeGetCurrentIrql(void)
{
    ULONG64 Level;
    __asm__ volatile("movq %%cr8, %0" : "=r"(Level));
    return (KIRQL)Level;
}

// IRQL is CR8, as on Windows x64: an interrupt's level is the upper half of its
// vector. Those of the 8259, which the local APIC passes on, are not held back
// by it; they come at any level, and touch nothing that a lock guards.
FORCEINLINE void KiSetIrql(ULONG64 Level)
{
    __asm__ volatile("movq %0, %%cr8" : : "r"(Level) : "memory");
}

// What a trap frame says, for code that need not know its layout.
FORCEINLINE ULONG_PTR KiFrameIp(const KTRAP_FRAME *Frame)
{
    return Frame->Rip;
}

FORCEINLINE void KiSetFrameIp(PKTRAP_FRAME Frame, const void *Ip)
{
    Frame->Rip = (ULONG_PTR)Ip;
}

FORCEINLINE ULONG_PTR KiFrameSp(const KTRAP_FRAME *Frame)
{
    return Frame->Rsp;
}

// One entry of the service table: the offset from the table, and how many
// arguments are on the stack; the first four are in registers.
FORCEINLINE void KiWriteService(volatile LONG *Table, ULONG Number, PVOID Target, ULONG Arguments)
{
    LONG_PTR Offset = (ULONG_PTR)Target - (ULONG_PTR)Table;
    ULONG OnStack = Arguments > 4 ? Arguments - 4 : 0;
    Table[Number] = (LONG)(Offset << 4 | OnStack);
}

#define KI_ARGUMENT_TABLE NULL // what it would say is in each entry

// Model-specific registers that nobody may change: EFER, STAR, LSTAR, CSTAR, SFMASK.
#define KI_GUARDED_MSRS {0xC0000080, 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084}
#define KI_GUARDED_MSR_COUNT 5

// A bug check's parameters, as they are printed.
#define KI_PARAMETER_FORMAT "0x%016llx"

void KiSystemCall64(void);
void KiSystemCall32(void);

// For the console: the entries that this architecture has.
extern UCHAR KiSystemServiceStart[], KiSystemServiceRepeat[], KiSystemServiceExit[],
    KiServiceInternal[], KiServiceLinkage[];
#define KI_ARCHITECTURE_SYMBOLS \
    {"KiSystemCall64", (ULONG_PTR)KiSystemCall64}, \
    {"KiSystemServiceStart", (ULONG_PTR)KiSystemServiceStart}, \
    {"KiSystemServiceRepeat", (ULONG_PTR)KiSystemServiceRepeat}, \
    {"KiSystemServiceCopyEnd", (ULONG_PTR)KiSystemServiceCopyEnd}, \
    {"KiSystemServiceExit", (ULONG_PTR)KiSystemServiceExit}, \
    {"KiServiceInternal", (ULONG_PTR)KiServiceInternal}, \
    {"KiServiceLinkage", (ULONG_PTR)KiServiceLinkage},

// `int 2Eh` leads nowhere.
#define KI_HAS_SERVICE_INTERRUPT FALSE

#endif
