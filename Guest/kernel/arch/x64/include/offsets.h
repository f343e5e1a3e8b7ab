// Where fields lie, for assembly; the C structures assert the same numbers.
//
// Those of Windows 10 x64 builds 19041 to 19045, as Microsoft's public symbols
// give them (`dt nt!_KTHREAD` and so on; also listed by the Vergilius Project).

#ifndef VIGIL_OFFSETS_H
#define VIGIL_OFFSETS_H

// KPCR, reached through GS.
#define KPCR_GdtBase 0x000
#define KPCR_TssBase 0x008
#define KPCR_UserRsp 0x010
#define KPCR_Self 0x018
#define KPCR_CurrentPrcb 0x020
#define KPCR_IdtBase 0x038
#define KPCR_Irql 0x050
#define KPCR_Prcb 0x180
#define KPRCB_MxCsr 0x000
#define KPRCB_CurrentThread 0x008
#define KPRCB_NextThread 0x010
#define KPRCB_IdleThread 0x018
#define KPRCB_NestingLevel 0x020
#define KPRCB_Number 0x024
#define KPRCB_RspBase 0x028
#define PCR_MxCsr 0x180
#define PCR_CurrentThread 0x188
#define PCR_RspBase 0x1A8

// KTHREAD and ETHREAD.
#define KTHREAD_InitialStack 0x028
#define KTHREAD_StackLimit 0x030
#define KTHREAD_StackBase 0x038
#define KTHREAD_KernelStack 0x058
#define KTHREAD_StateSaveArea 0x060
#define KTHREAD_MiscFlags 0x074
#define KTHREAD_ThreadFlags 0x078
#define KTHREAD_SystemCallNumber 0x080
#define KTHREAD_FirstArgument 0x088
#define KTHREAD_TrapFrame 0x090
#define KTHREAD_ApcState 0x098
#define KTHREAD_ApcState_Process 0x0B8
#define KTHREAD_WaitListEntry 0x0D8
#define KTHREAD_Teb 0x0F0
#define KTHREAD_State 0x184
#define KTHREAD_Process 0x220
#define KTHREAD_PreviousMode 0x232
#define ETHREAD_Cid_UniqueProcess 0x478
#define ETHREAD_Cid_UniqueThread 0x480
#define ETHREAD_ThreadListEntry 0x4E8

#define KTHREAD_SystemThreadBit 10 // in MiscFlags
#define KTHREAD_GuiThreadMask 0x80 // in ThreadFlags

// KPROCESS and EPROCESS.
#define KPROCESS_DirectoryTableBase 0x028
#define EPROCESS_UniqueProcessId 0x440
#define EPROCESS_ActiveProcessLinks 0x448
#define EPROCESS_Token 0x4B8
#define EPROCESS_SectionBaseAddress 0x520
#define EPROCESS_InheritedFromUniqueProcessId 0x540
#define EPROCESS_Peb 0x550
#define EPROCESS_ImageFileName 0x5A8
#define EPROCESS_ThreadListHead 0x5E0

// KTRAP_FRAME. The entry code leaves RBP at frame + 0x80.
#define KTRAP_FRAME_PreviousMode 0x028
#define KTRAP_FRAME_ExceptionActive 0x02B
#define KTRAP_FRAME_MxCsr 0x02C
#define KTRAP_FRAME_Rax 0x030
#define KTRAP_FRAME_Rcx 0x038
#define KTRAP_FRAME_Rdx 0x040
#define KTRAP_FRAME_R8 0x048
#define KTRAP_FRAME_R9 0x050
#define KTRAP_FRAME_R10 0x058
#define KTRAP_FRAME_R11 0x060
#define KTRAP_FRAME_FaultAddress 0x0D0
#define KTRAP_FRAME_TrapFrame 0x138
#define KTRAP_FRAME_Rbx 0x140
#define KTRAP_FRAME_Rdi 0x148
#define KTRAP_FRAME_Rsi 0x150
#define KTRAP_FRAME_Rbp 0x158
#define KTRAP_FRAME_ErrorCode 0x160
#define KTRAP_FRAME_Rip 0x168
#define KTRAP_FRAME_SegCs 0x170
#define KTRAP_FRAME_EFlags 0x178
#define KTRAP_FRAME_Rsp 0x180
#define KTRAP_FRAME_SegSs 0x188
#define KTRAP_FRAME_Size 0x190

// Selectors, as Windows lays out its GDT.
#define KGDT64_R0_CODE 0x10
#define KGDT64_R0_DATA 0x18
#define KGDT64_R3_CMCODE 0x20
#define KGDT64_R3_DATA 0x28
#define KGDT64_R3_CODE 0x30
#define KGDT64_SYS_TSS 0x40

// The service table.
#define SERVICE_COUNT 0x1D8
#define SERVICE_NUMBER_MASK 0xFFF

#define KERNEL_STACK_SIZE 0x6000
#define KERNEL_STACK_RESERVE 0x200 // at its top: the x87 and SSE state

#define KI_USER_SHARED_DATA 0xFFFFF78000000000

#endif
