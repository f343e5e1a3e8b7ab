// x86: the structures that the architecture shapes, as Windows 7 SP1 has them (see
// offsets.h), and what only the processor can say.

#ifndef VIGIL_ARCHKE_H
#define VIGIL_ARCHKE_H

typedef struct {
    DISPATCHER_HEADER Header;            // 0x000
    LIST_ENTRY ProfileListHead;          // 0x010
    ULONG_PTR DirectoryTableBase;        // 0x018
    ULONG LdtDescriptor[2], Int21Descriptor[2];
    LIST_ENTRY ThreadListHead;           // 0x02C
    UCHAR Reserved034[0x098 - 0x034];
} KPROCESS, *PKPROCESS;
FIELD_AT(KPROCESS, DirectoryTableBase, KPROCESS_DirectoryTableBase);
FIELD_AT(KPROCESS, ThreadListHead, KPROCESS_ThreadListHead);
C_ASSERT(sizeof(KPROCESS) == 0x98);

typedef struct _KTRAP_FRAME {
    ULONG DbgEbp, DbgEip, DbgArgMark, DbgArgPointer; // 0x000
    USHORT TempSegCs;                                // 0x010
    UCHAR Logging;
    UCHAR PreviousIrql;                              // Windows: reserved
    ULONG FaultAddress;                              // Windows: TempEsp
    ULONG Dr[6];                                     // 0x018
    ULONG SegGs, SegEs, SegDs;                       // 0x030
    ULONG Edx, Ecx, Eax;                             // 0x03C
    ULONG PreviousMode;                              // 0x048
    ULONG ExceptionList, SegFs;                      // 0x04C
    ULONG Edi, Esi, Ebx, Ebp;                        // 0x054
    ULONG ErrorCode, Eip, SegCs, EFlags;             // 0x064
    ULONG HardwareEsp, HardwareSegSs;                // 0x074
    ULONG V86[4];                                    // 0x07C
} KTRAP_FRAME, *PKTRAP_FRAME;
FIELD_AT(KTRAP_FRAME, FaultAddress, 0x014);
FIELD_AT(KTRAP_FRAME, SegGs, KTRAP_FRAME_SegGs);
FIELD_AT(KTRAP_FRAME, PreviousMode, KTRAP_FRAME_PreviousMode);
FIELD_AT(KTRAP_FRAME, Ebp, KTRAP_FRAME_Ebp);
FIELD_AT(KTRAP_FRAME, Eip, KTRAP_FRAME_Eip);
FIELD_AT(KTRAP_FRAME, HardwareEsp, KTRAP_FRAME_HardwareEsp);
C_ASSERT(sizeof(KTRAP_FRAME) == KTRAP_FRAME_Size);

typedef struct _KTHREAD {
    DISPATCHER_HEADER Header;      // 0x000
    ULONG64 CycleTime;             // 0x010
    ULONG HighCycleTime, Reserved01C;
    ULONG64 QuantumTarget;         // 0x020, in clock ticks
    PVOID InitialStack;            // 0x028
    PVOID StackLimit, KernelStack; // 0x02C
    ULONG ThreadLock;              // 0x034
    UCHAR WaitRegister, RunningNow, Alerted[2];
    ULONG MiscFlags;               // 0x03C
    struct {
        LIST_ENTRY ApcListHead[2]; // 0x040
        PKPROCESS Process;         // 0x050
        UCHAR KernelApcInProgress, KernelApcPending, UserApcPending;
        SCHAR Priority;            // 0x057
    } ApcState;
    UCHAR Reserved058[0x068 - 0x058];
    UCHAR State;                   // 0x068
    UCHAR Reserved069[3];
    LONG_PTR WaitStatus;           // 0x06C
    DISPATCHER_HEADER *WaitObject; // 0x070 (Windows: the list of wait blocks)
    LIST_ENTRY WaitListEntry;      // 0x074, in the ready list or an object's
    PVOID Queue;                   // 0x07C
    UCHAR Reserved080[0x088 - 0x080];
    PVOID Teb;                     // 0x088
    ULONG Reserved08C;
    ULONG64 DueTime;               // 0x090 (Windows: a KTIMER), interrupt time; 0: none
    LIST_ENTRY TimerListEntry;     // 0x098
    UCHAR Reserved0A0[0x0B8 - 0x0A0];
    ULONG ThreadFlags;             // 0x0B8
    PVOID ServiceTable;            // 0x0BC
    UCHAR Reserved0C0[0x128 - 0x0C0];
    PKTRAP_FRAME TrapFrame;        // 0x128
    PVOID FirstArgument;           // 0x12C
    UCHAR Reserved130[0x13A - 0x130];
    CHAR PreviousMode;             // 0x13A
    UCHAR Saturation;
    ULONG SystemCallNumber;        // 0x13C
    UCHAR Reserved140[0x150 - 0x140];
    PKPROCESS Process;             // 0x150
    UCHAR Reserved154[0x190 - 0x154];
    PVOID StackBase;               // 0x190
    UCHAR Reserved194[0x200 - 0x194];
} KTHREAD, *PKTHREAD;
FIELD_AT(KTHREAD, InitialStack, KTHREAD_InitialStack);
FIELD_AT(KTHREAD, StackLimit, KTHREAD_StackLimit);
FIELD_AT(KTHREAD, KernelStack, KTHREAD_KernelStack);
FIELD_AT(KTHREAD, MiscFlags, KTHREAD_MiscFlags);
FIELD_AT(KTHREAD, ApcState, KTHREAD_ApcState);
FIELD_AT(KTHREAD, ApcState.Process, KTHREAD_ApcState_Process);
FIELD_AT(KTHREAD, State, KTHREAD_State);
FIELD_AT(KTHREAD, WaitStatus, KTHREAD_WaitStatus);
FIELD_AT(KTHREAD, WaitListEntry, KTHREAD_WaitListEntry);
FIELD_AT(KTHREAD, Teb, KTHREAD_Teb);
FIELD_AT(KTHREAD, ServiceTable, KTHREAD_ServiceTable);
FIELD_AT(KTHREAD, TrapFrame, KTHREAD_TrapFrame);
FIELD_AT(KTHREAD, FirstArgument, KTHREAD_FirstArgument);
FIELD_AT(KTHREAD, PreviousMode, KTHREAD_PreviousMode);
FIELD_AT(KTHREAD, SystemCallNumber, KTHREAD_SystemCallNumber);
FIELD_AT(KTHREAD, Process, KTHREAD_Process);
FIELD_AT(KTHREAD, StackBase, KTHREAD_StackBase);
C_ASSERT(sizeof(KTHREAD) == 0x200);

// Intel SDM volume 3A, section 8.2.1: the 32-bit task-state segment.
typedef struct {
    ULONG Backlink, Esp0, Ss0, Esp1, Ss1, Esp2, Ss2, Cr3; // 0x00
    ULONG Eip, EFlags, Eax, Ecx, Edx, Ebx, Esp, Ebp, Esi, Edi; // 0x20
    ULONG Es, Cs, Ss, Ds, Fs, Gs, Ldt;                    // 0x48
    USHORT Flags, IoMapBase;                              // 0x64
} KTSS;
FIELD_AT(KTSS, Esp0, KTSS_Esp0);
C_ASSERT(sizeof(KTSS) == 104);

typedef struct {
    USHORT OffsetLow, Selector;
    UCHAR Reserved, Attributes;
    USHORT OffsetHigh;
} KIDTENTRY;
C_ASSERT(sizeof(KIDTENTRY) == 8);

typedef struct {
    USHORT MinorVersion, MajorVersion; // 0x000
    PKTHREAD CurrentThread;            // 0x004
    PKTHREAD NextThread;               // 0x008
    PKTHREAD IdleThread;               // 0x00C
    UCHAR LegacyNumber, NestingLevel;
    USHORT BuildType;
    UCHAR Reserved014[0x378 - 0x014];
    volatile UCHAR QuantumEnd;         // 0x378, HalReserved: it shall look for another thread
    UCHAR ApicId;
    UCHAR Fill[2];
    volatile ULONG DpcRequests;        // KI_DPC_…
    UCHAR Reserved380[0x3CC - 0x380];
    ULONG Number;                      // 0x3CC
    UCHAR Reserved3D0[0x590 - 0x3D0];
    volatile ULONG SystemCalls;        // 0x590
    UCHAR Reserved594[0x700 - 0x594];
} KPRCB, *PKPRCB;
FIELD_AT(KPRCB, CurrentThread, KPRCB_CurrentThread);
FIELD_AT(KPRCB, IdleThread, KPRCB_IdleThread);
FIELD_AT(KPRCB, QuantumEnd, KPRCB_HalReserved);
FIELD_AT(KPRCB, Number, KPRCB_Number);
FIELD_AT(KPRCB, SystemCalls, KPRCB_SystemCalls);

typedef struct _KPCR {
    PVOID ExceptionList;     // 0x000: NT_TIB, whose Self is the thread's TEB
    PVOID StackBase, StackLimit;
    PVOID Reserved00C[3];
    PVOID Self;              // 0x018
    struct _KPCR *SelfPcr;   // 0x01C
    PKPRCB CurrentPrcb;      // 0x020
    ULONG Irql;              // 0x024: not kept, as with Windows' HAL for an APIC
    PVOID Reserved028[4];
    KIDTENTRY *IdtBase;      // 0x038
    PVOID GdtBase;           // 0x03C
    KTSS *TssBase;           // 0x040
    USHORT MajorVersion, MinorVersion; // 0x044
    UCHAR Reserved048[0x120 - 0x048];
    KPRCB Prcb;              // 0x120
} KPCR, *PKPCR;
FIELD_AT(KPCR, Self, KPCR_Self);
FIELD_AT(KPCR, SelfPcr, KPCR_SelfPcr);
FIELD_AT(KPCR, CurrentPrcb, KPCR_CurrentPrcb);
FIELD_AT(KPCR, Irql, KPCR_Irql);
FIELD_AT(KPCR, IdtBase, KPCR_IdtBase);
FIELD_AT(KPCR, GdtBase, KPCR_GdtBase);
FIELD_AT(KPCR, TssBase, KPCR_TssBase);
FIELD_AT(KPCR, Prcb, KPCR_Prcb);

FORCEINLINE PKPRCB KeGetCurrentPrcb(void)
{
    PKPRCB Prcb;
    __asm__ volatile("movl %%fs:%c1, %0" : "=r"(Prcb) : "i"(KPCR_CurrentPrcb));
    return Prcb;
}

FORCEINLINE PKTHREAD KiCurrentThread(void)
{
    PKTHREAD Thread;
    __asm__ volatile("movl %%fs:%c1, %0" : "=r"(Thread) : "i"(PCR_CurrentThread));
    return Thread;
}

// IRQL is the local APIC's task priority, mapped where Windows' HAL has it: an
// interrupt's level is the upper half of its vector, as on x64, and so are the
// levels, 0 to 15. The 8259's interrupts are not held back by it.
FORCEINLINE KIRQL KeGetCurrentIrql(void)
{
    return (KIRQL)(*(volatile ULONG *)MM_LOCAL_APIC_TPR >> 4);
}

FORCEINLINE void KiSetIrql(ULONG Level)
{
    __asm__ volatile("" : : : "memory");
    *(volatile ULONG *)MM_LOCAL_APIC_TPR = Level << 4;
    __asm__ volatile("" : : : "memory");
}

// What a trap frame says, for code that need not know its layout.
FORCEINLINE ULONG_PTR KiFrameIp(const KTRAP_FRAME *Frame)
{
    return Frame->Eip;
}

FORCEINLINE void KiSetFrameIp(PKTRAP_FRAME Frame, const void *Ip)
{
    Frame->Eip = (ULONG_PTR)Ip;
}

// The processor pushes the stack pointer only when it changes rings.
FORCEINLINE ULONG_PTR KiFrameSp(const KTRAP_FRAME *Frame)
{
    return Frame->SegCs & 1 ? Frame->HardwareEsp : (ULONG_PTR)&Frame->HardwareEsp;
}

// One entry of the service table, the function's address; how many bytes of
// arguments it takes is in a table of its own.
extern UCHAR KiArgumentTable[SERVICE_COUNT];
#define KI_ARGUMENT_TABLE KiArgumentTable

FORCEINLINE void KiWriteService(volatile LONG *Table, ULONG Number, PVOID Target, ULONG Arguments)
{
    Table[Number] = (LONG)Target;
    ((volatile UCHAR *)KiArgumentTable)[Number] = (UCHAR)(Arguments * 4);
}

// Model-specific registers that nobody may change: IA32_SYSENTER_CS, ESP, EIP, and
// EFER where page tables depend on it.
#ifdef VIGIL_PAE
#define KI_GUARDED_MSRS {0x174, 0x175, 0x176, 0xC0000080}
#define KI_GUARDED_MSR_COUNT 4
#else
#define KI_GUARDED_MSRS {0x174, 0x175, 0x176}
#define KI_GUARDED_MSR_COUNT 3
#endif

// A bug check's parameters, as they are printed.
#define KI_PARAMETER_FORMAT "0x%08llx"

extern UCHAR KiFastCallEntry[], KiSystemService[], KiSystemServiceRepeat[], KiServiceExit[],
    KiSystemCallExit[];
#define KI_ARCHITECTURE_SYMBOLS \
    {"KiFastCallEntry", (ULONG_PTR)KiFastCallEntry}, \
    {"KiSystemService", (ULONG_PTR)KiSystemService}, \
    {"KiSystemServiceRepeat", (ULONG_PTR)KiSystemServiceRepeat}, \
    {"KiSystemServiceCopyEnd", (ULONG_PTR)KiSystemServiceCopyEnd}, \
    {"KiServiceExit", (ULONG_PTR)KiServiceExit}, \
    {"KiSystemCallExit", (ULONG_PTR)KiSystemCallExit}, \
    {"KiArgumentTable", (ULONG_PTR)KiArgumentTable}, \
    {"SharedUserData", KI_USER_SHARED_DATA}, \
    {"MmProtopteBase", MM_NONPAGED_POOL_BASE},

// `int 2Eh` is a system call, too.
#define KI_HAS_SERVICE_INTERRUPT TRUE

#endif
