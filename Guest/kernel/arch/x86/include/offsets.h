// Where fields lie, for assembly; the C structures assert the same numbers.
//
// Those of Windows 7 SP1 x86 (build 7601), as Microsoft's public symbols give them
// (`dt nt!_KTHREAD` and so on; also listed by the Vergilius Project); they are the
// same with and without physical address extension.

#ifndef VIGIL_OFFSETS_H
#define VIGIL_OFFSETS_H

// KPCR, reached through FS.
#define KPCR_ExceptionList 0x000
#define KPCR_Self 0x018
#define KPCR_SelfPcr 0x01C
#define KPCR_CurrentPrcb 0x020
#define KPCR_Irql 0x024
#define KPCR_IdtBase 0x038
#define KPCR_GdtBase 0x03C
#define KPCR_TssBase 0x040
#define KPCR_Prcb 0x120
#define KPRCB_CurrentThread 0x004
#define KPRCB_NextThread 0x008
#define KPRCB_IdleThread 0x00C
#define KPRCB_HalReserved 0x378
#define KPRCB_Number 0x3CC
#define KPRCB_SystemCalls 0x590
#define PCR_CurrentThread 0x124
#define PCR_SystemCalls 0x6B0

// KTHREAD and ETHREAD.
#define KTHREAD_InitialStack 0x028
#define KTHREAD_StackLimit 0x02C
#define KTHREAD_KernelStack 0x030
#define KTHREAD_MiscFlags 0x03C
#define KTHREAD_ApcState 0x040
#define KTHREAD_ApcState_Process 0x050
#define KTHREAD_State 0x068
#define KTHREAD_WaitStatus 0x06C
#define KTHREAD_WaitListEntry 0x074
#define KTHREAD_Teb 0x088
#define KTHREAD_ServiceTable 0x0BC
#define KTHREAD_TrapFrame 0x128
#define KTHREAD_FirstArgument 0x12C
#define KTHREAD_PreviousMode 0x13A
#define KTHREAD_SystemCallNumber 0x13C
#define KTHREAD_Process 0x150
#define KTHREAD_StackBase 0x190
#define ETHREAD_StartAddress 0x218
#define ETHREAD_Cid_UniqueProcess 0x22C
#define ETHREAD_Cid_UniqueThread 0x230
#define ETHREAD_ThreadListEntry 0x268

#define KTHREAD_SystemThreadBit 13 // in MiscFlags

// KPROCESS and EPROCESS.
#define KPROCESS_DirectoryTableBase 0x018
#define KPROCESS_ThreadListHead 0x02C
#define EPROCESS_UniqueProcessId 0x0B4
#define EPROCESS_ActiveProcessLinks 0x0B8
#define EPROCESS_Token 0x0F8
#define EPROCESS_SectionBaseAddress 0x12C
#define EPROCESS_InheritedFromUniqueProcessId 0x140
#define EPROCESS_ImageFileName 0x16C
#define EPROCESS_ThreadListHead 0x188
#define EPROCESS_ActiveThreads 0x198
#define EPROCESS_Peb 0x1A8

// KTRAP_FRAME. The entry code leaves EBP at the frame. What follows EFlags is there
// only if the trap came from ring 3; the last four fields never are, but the stack
// has room for them.
#define KTRAP_FRAME_DbgEbp 0x000
#define KTRAP_FRAME_DbgEip 0x004
#define KTRAP_FRAME_DbgArgMark 0x008
#define KTRAP_FRAME_DbgArgPointer 0x00C
#define KTRAP_FRAME_Dr7 0x02C
#define KTRAP_FRAME_SegGs 0x030
#define KTRAP_FRAME_SegEs 0x034
#define KTRAP_FRAME_SegDs 0x038
#define KTRAP_FRAME_Edx 0x03C
#define KTRAP_FRAME_Ecx 0x040
#define KTRAP_FRAME_Eax 0x044
#define KTRAP_FRAME_PreviousMode 0x048
#define KTRAP_FRAME_ExceptionList 0x04C
#define KTRAP_FRAME_SegFs 0x050
#define KTRAP_FRAME_Edi 0x054
#define KTRAP_FRAME_Esi 0x058
#define KTRAP_FRAME_Ebx 0x05C
#define KTRAP_FRAME_Ebp 0x060
#define KTRAP_FRAME_ErrorCode 0x064
#define KTRAP_FRAME_Eip 0x068
#define KTRAP_FRAME_SegCs 0x06C
#define KTRAP_FRAME_EFlags 0x070
#define KTRAP_FRAME_HardwareEsp 0x074
#define KTRAP_FRAME_HardwareSegSs 0x078
#define KTRAP_FRAME_Size 0x08C

// At the top of a kernel stack: the x87 and SSE state (ntddk.h's FX_SAVE_AREA), and
// below it, where the processor begins to push, the last four fields of a frame.
#define NPX_FRAME_LENGTH 0x210
#define KTRAP_FRAME_V86 0x10

// Selectors, as Windows lays out its GDT.
#define KGDT_R0_CODE 0x08
#define KGDT_R0_DATA 0x10
#define KGDT_R3_CODE 0x18
#define KGDT_R3_DATA 0x20
#define KGDT_TSS 0x28
#define KGDT_R0_PCR 0x30
#define KGDT_R3_TEB 0x38
#define KGDT_DF_TSS 0x50
#define KGDT_NMI_TSS 0x58

// KTSS.
#define KTSS_Esp0 0x004

// The service table: Windows 7's 0x191 and two of our own.
#define SERVICE_COUNT 0x193
#define SERVICE_NUMBER_MASK 0xFFF
#define SERVICE_TABLE_MASK 0x10

#define KERNEL_STACK_SIZE 0x3000
#define KERNEL_STACK_RESERVE (NPX_FRAME_LENGTH + KTRAP_FRAME_V86) // at its top

#define KI_USER_SHARED_DATA 0xFFDF0000
#define KI_SYSTEM_CALL_RETURN 0x304 // in it
#define MM_LOCAL_APIC_TPR 0xFFFE0080

#endif
