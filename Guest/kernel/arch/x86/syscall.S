// System calls: SYSENTER, `int 2Eh` and the kernel's own (from the Zw stubs), and
// the path that all share.
//
// Shapes and order follow Windows 7 x86: `uf nt!KiFastCallEntry`, `nt!KiSystemService`
// and `nt!KiServiceExit` under public symbols, as reproduced in many write-ups (for
// one, "System Service Dispatching" in Windows Internals, 6th edition, part 1). EBP
// is the trap frame throughout.

    // `mov.s` picks the encoding that MASM would: opcode 8B, not 89.
    .intel_syntax noprefix
#include "include/offsets.h"

    .text

    .balign 16
    .globl _KiSystemService
_KiSystemService:
    push 0                                      // 6A 00: ErrorCode
    push ebp                                    // 55
    push ebx                                    // 53
    push esi                                    // 56
    push edi                                    // 57
    .byte 0x0F, 0xA0                            // push fs, of 32 bits, as MASM encodes it
    mov ebx, KGDT_R0_PCR                        // BB 30 00 00 00
    mov fs, bx                                  // 66 8E E3
    mov ebx, KGDT_R3_DATA | 3                   // BB 23 00 00 00
    mov ds, ebx                                 // 8E DB
    mov es, ebx                                 // 8E C3
    mov esi, fs:[PCR_CurrentThread]             // 64 8B 35 24 01 00 00
    push dword ptr fs:[KPCR_ExceptionList]      // 64 FF 35 00 00 00 00
    mov dword ptr fs:[KPCR_ExceptionList], -1
    push dword ptr [esi + KTHREAD_PreviousMode] // FF B6 3A 01 00 00
    sub esp, KTRAP_FRAME_PreviousMode           // 83 EC 48
    mov ebx, [esp + KTRAP_FRAME_SegCs]          // 8B 5C 24 6C
    and ebx, 1                                  // 83 E3 01
    mov [esi + KTHREAD_PreviousMode], bl        // 88 9E 3A 01 00 00
    mov.s ebp, esp                              // 8B EC
    mov ebx, [esi + KTHREAD_TrapFrame]          // 8B 9E 28 01 00 00
    mov [ebp + KTRAP_FRAME_Edx], ebx            // 89 5D 3C: the frame before
    and dword ptr [ebp + KTRAP_FRAME_Dr7], 0    // 83 65 2C 00
    mov [esi + KTHREAD_TrapFrame], ebp          // 89 AE 28 01 00 00
    cld                                         // FC
    mov ebx, [ebp + KTRAP_FRAME_Ebp]            // 8B 5D 60
    mov edi, [ebp + KTRAP_FRAME_Eip]            // 8B 7D 68
    mov [ebp + KTRAP_FRAME_DbgArgPointer], edx  // 89 55 0C
    mov dword ptr [ebp + KTRAP_FRAME_DbgArgMark], 0xBADB0D00 // C7 45 08 00 0D DB BA
    mov [ebp + KTRAP_FRAME_DbgEbp], ebx         // 89 5D 00
    mov [ebp + KTRAP_FRAME_DbgEip], edi         // 89 7D 04
    sti                                         // FB
    jmp _KiSystemServiceRepeat

    .balign 16
    .globl _KiFastCallEntry
_KiFastCallEntry:
    mov ecx, KGDT_R3_DATA | 3                   // B9 23 00 00 00
    push KGDT_R0_PCR                            // 6A 30
    .byte 0x0F, 0xA1                            // pop fs
    mov ds, ecx                                 // 8E D9
    mov es, ecx                                 // 8E C1
    mov ecx, fs:[KPCR_TssBase]                  // 64 8B 0D 40 00 00 00
    mov esp, [ecx + KTSS_Esp0]                  // 8B 61 04
    push KGDT_R3_DATA | 3                       // 6A 23: HardwareSegSs
    push edx                                    // 52: HardwareEsp
    pushfd                                      // 9C: EFlags
    push 2                                      // 6A 02
    add edx, 8                                  // 83 C2 08: to the arguments
    popfd                                       // 9D
    or byte ptr [esp + 1], 2                    // 80 4C 24 01 02: interrupts were on
    push KGDT_R3_CODE | 3                       // 6A 1B: SegCs
    push dword ptr [KI_USER_SHARED_DATA + KI_SYSTEM_CALL_RETURN] // FF 35 04 03 DF FF: Eip
    push 0                                      // 6A 00: ErrorCode
    push ebp                                    // 55
    push ebx                                    // 53
    push esi                                    // 56
    push edi                                    // 57
    mov ebx, fs:[KPCR_SelfPcr]                  // 64 8B 1D 1C 00 00 00
    push KGDT_R3_TEB | 3                        // 6A 3B: SegFs
    mov esi, [ebx + PCR_CurrentThread]          // 8B B3 24 01 00 00
    push dword ptr [ebx]                        // FF 33: ExceptionList
    mov dword ptr [ebx], -1                     // C7 03 FF FF FF FF
    mov ebp, [esi + KTHREAD_InitialStack]       // 8B 6E 28
    push 1                                      // 6A 01: PreviousMode
    sub esp, KTRAP_FRAME_PreviousMode           // 83 EC 48
    sub ebp, NPX_FRAME_LENGTH + KTRAP_FRAME_Size // 81 ED 9C 02 00 00
    mov byte ptr [esi + KTHREAD_PreviousMode], 1 // C6 86 3A 01 00 00 01
    and dword ptr [ebp + KTRAP_FRAME_Dr7], 0    // 83 65 2C 00
    mov [esi + KTHREAD_TrapFrame], ebp          // 89 AE 28 01 00 00
    mov ebx, [ebp + KTRAP_FRAME_Ebp]            // 8B 5D 60
    mov edi, [ebp + KTRAP_FRAME_Eip]            // 8B 7D 68
    mov [ebp + KTRAP_FRAME_DbgArgPointer], edx  // 89 55 0C
    mov dword ptr [ebp + KTRAP_FRAME_DbgArgMark], 0xBADB0D00 // C7 45 08 00 0D DB BA
    mov [ebp + KTRAP_FRAME_DbgEbp], ebx         // 89 5D 00
    mov [ebp + KTRAP_FRAME_DbgEip], edi         // 89 7D 04
    sti                                         // FB

    .globl _KiSystemServiceRepeat
_KiSystemServiceRepeat:
    mov.s edi, eax                              // 8B F8
    shr edi, 8                                  // C1 EF 08
    and edi, SERVICE_TABLE_MASK                 // 83 E7 10: which table
    mov.s ecx, edi                              // 8B CF
    add edi, [esi + KTHREAD_ServiceTable]       // 03 BE BC 00 00 00
    mov.s ebx, eax                              // 8B D8
    and eax, SERVICE_NUMBER_MASK                // 25 FF 0F 00 00
    cmp eax, [edi + 8]                          // 3B 47 08: Limit
    jae KiSystemServiceBadNumber
    inc dword ptr fs:[PCR_SystemCalls]          // 64 FF 05 B0 06 00 00
    mov.s esi, edx                              // 8B F2
    xor ecx, ecx                                // 33 C9
    mov edx, [edi + 0x0C]                       // 8B 57 0C: the sizes
    mov edi, [edi]                              // 8B 3F: Base
    mov cl, [eax + edx]                         // 8A 0C 10
    mov edx, [edi + eax * 4]                    // 8B 14 87
    sub esp, ecx                                // 2B E1
    shr ecx, 2                                  // C1 E9 02
    mov.s edi, esp                              // 8B FC
    cmp esi, [_MmUserProbeAddress]              // 3B 35 addr
    jae KiSystemServiceProbe
    .globl _KiSystemServiceCopyStart
_KiSystemServiceCopyStart:
    rep movsd                                   // F3 A5
    .globl _KiSystemServiceCopyEnd
_KiSystemServiceCopyEnd:
    test byte ptr [ebp + KTRAP_FRAME_SegCs], 1  // F6 45 6C 01
    jz 1f
    mov ecx, fs:[PCR_CurrentThread]             // 64 8B 0D 24 01 00 00
    mov edi, [esp]                              // 8B 3C 24
    mov [ecx + KTHREAD_SystemCallNumber], ebx   // 89 99 3C 01 00 00
    mov [ecx + KTHREAD_FirstArgument], edi      // 89 B9 2C 01 00 00
1:  mov.s ebx, edx                              // 8B DA
    call ebx                                    // FF D3
    lock inc dword ptr [_KeSystemCalls]
    jnz 2f
    inc dword ptr [_KeSystemCalls + 4]
2:
    mov.s esp, ebp                              // 8B E5

    .globl _KiServiceExit
_KiServiceExit:
    mov ecx, fs:[PCR_CurrentThread]             // 64 8B 0D 24 01 00 00
    cli                                         // FA
    mov edx, [ebp + KTRAP_FRAME_Edx]            // 8B 55 3C
    mov [ecx + KTHREAD_TrapFrame], edx          // 89 91 28 01 00 00
    mov edx, [esp + KTRAP_FRAME_ExceptionList]  // 8B 54 24 4C
    mov fs:[KPCR_ExceptionList], edx            // 64 89 15 00 00 00 00
    mov edx, [esp + KTRAP_FRAME_PreviousMode]   // 8B 54 24 48
    mov [ecx + KTHREAD_PreviousMode], dl
    test byte ptr [ebp + KTRAP_FRAME_SegCs], 1
    jz KiServiceExitKernel
    lea esp, [ebp + KTRAP_FRAME_SegFs]          // 8D 65 50
    .byte 0x0F, 0xA1                            // pop fs
    lea esp, [ebp + KTRAP_FRAME_Edi]            // 8D 65 54
    pop edi                                     // 5F
    pop esi                                     // 5E
    pop ebx                                     // 5B
    pop ebp                                     // 5D
    add esp, 4                                  // the error code
    test byte ptr [esp + 9], 1                  // TF: a debugger steps through
    .globl _KiSystemCallExit
_KiSystemCallExit:
    jnz KiSystemCallExitTrace
    pop edx                                     // 5A: Eip
    add esp, 4                                  // 83 C4 04
    and byte ptr [esp + 1], 0xFD                // 80 64 24 01 FD: not yet
    popfd                                       // 9D
    pop ecx                                     // 59: HardwareEsp
    sti                                         // FB: with the next instruction
    sysexit                                     // 0F 35

KiSystemCallExitTrace:
    iretd

// To a Zw stub, which is on the same stack.
KiServiceExitKernel:
    lea esp, [ebp + KTRAP_FRAME_SegFs]
    .byte 0x0F, 0xA1                            // pop fs
    pop edi
    pop esi
    pop ebx
    pop ebp
    add esp, 4                                  // the error code
    pop edx                                     // Eip
    pop ecx                                     // SegCs
    popfd
    jmp edx

// The caller's stack is in the kernel's half: the kernel's own may be.
KiSystemServiceProbe:
    test byte ptr [ebp + KTRAP_FRAME_SegCs], 1
    jz _KiSystemServiceCopyStart

// Where the page-fault handler sends a copy that faulted, too: the caller's stack
// is not what it said.
    .globl _KiSystemServiceCopyFault
_KiSystemServiceCopyFault:
    mov eax, 0xC0000005                         // STATUS_ACCESS_VIOLATION
    mov.s esp, ebp
    jmp _KiServiceExit

KiSystemServiceBadNumber:
    mov eax, 0xC000001C                         // STATUS_INVALID_SYSTEM_SERVICE
    mov.s esp, ebp
    jmp _KiServiceExit
