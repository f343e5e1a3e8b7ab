// System calls: the processor's entry, the kernel's own (from the Zw stubs),
// and the path both share.
//
// Shapes and order follow Windows 10 x64 without KVA shadow: `uf
// nt!KiSystemCall64` under public symbols, as reproduced in many write-ups (for
// one, "System Service Dispatching" in Windows Internals, 7th edition, part 2).
// RBP is the trap frame + 0x80 throughout, so [rbp-58h] is its PreviousMode.

    // `mov.s` picks the encoding that MASM would: opcode 8B, not 89.
    .intel_syntax noprefix
#include "include/offsets.h"

    .text

    .balign 64
    .globl KiSystemCall64
KiSystemCall64:
    swapgs                                      // 0F 01 F8
    mov gs:[KPCR_UserRsp], rsp                  // 65 48 89 24 25 10 00 00 00
    mov rsp, gs:[PCR_RspBase]                   // 65 48 8B 24 25 A8 01 00 00
    push 0x2B                                   // 6A 2B: SegSs
    push qword ptr gs:[KPCR_UserRsp]            // 65 FF 34 25 10 00 00 00: Rsp
    push r11                                    // 41 53: EFlags
    push 0x33                                   // 6A 33: SegCs
    push rcx                                    // 51: Rip
    mov.s rcx, r10                              // 49 8B CA
    sub rsp, 8                                  // 48 83 EC 08: ErrorCode
    push rbp                                    // 55
    sub rsp, 0x158                              // 48 81 EC 58 01 00 00
    lea rbp, [rsp + 0x80]                       // 48 8D AC 24 80 00 00 00
    mov [rbp + 0xC0], rbx
    mov [rbp + 0xC8], rdi
    mov [rbp + 0xD0], rsi
    mov byte ptr [rbp - 0x55], 2                // ExceptionActive: a service
    mov rbx, gs:[PCR_CurrentThread]             // 65 48 8B 1C 25 88 01 00 00
    prefetchw [rbx + KTHREAD_TrapFrame]
    stmxcsr dword ptr [rbp - 0x54]
    ldmxcsr dword ptr gs:[PCR_MxCsr]
    mov byte ptr [rbx + KTHREAD_PreviousMode], 1
    sti
    mov [rbx + KTHREAD_FirstArgument], rcx
    mov [rbx + KTHREAD_SystemCallNumber], eax
    nop

    .globl KiSystemServiceStart
KiSystemServiceStart:
    mov [rbx + KTHREAD_TrapFrame], rsp          // 48 89 A3 90 00 00 00
    mov.s edi, eax                              // 8B F8
    shr edi, 7                                  // C1 EF 07
    and edi, 0x20                               // 83 E7 20: which table
    and eax, SERVICE_NUMBER_MASK                // 25 FF 0F 00 00

    .globl KiSystemServiceRepeat
KiSystemServiceRepeat:
    lea r10, [rip + KeServiceDescriptorTable]           // 4C 8D 15 rel32
    lea r11, [rip + KeServiceDescriptorTableShadow]     // 4C 8D 1D rel32
    test dword ptr [rbx + KTHREAD_ThreadFlags], KTHREAD_GuiThreadMask // F7 43 78 imm32
    jz 1f
    mov.s r10, r11
1:  cmp eax, [r10 + rdi + 0x10]                 // 41 3B 44 3A 10: Limit
    jae KiSystemServiceBadNumber
    mov r10, [r10 + rdi]                        // 4D 8B 14 3A: Base
    movsxd r11, dword ptr [r10 + rax * 4]       // 4D 63 1C 82
    mov.s rax, r11                              // 49 8B C3
    sar r11, 4                                  // 49 C1 FB 04
    .byte 0x4D, 0x03, 0xD3                      // add r10,r11, as MASM encodes it
    and eax, 0xF                                // arguments on the stack
    jz KiSystemServiceCopyEnd
    shl eax, 3
    lea rsp, [rsp - 0x70]
    lea rdi, [rsp + 0x18]
    mov rsi, [rbp + 0x100]                      // the caller's Rsp
    lea rsi, [rsi + 0x20]                       // its home space skipped
    test byte ptr [rbp + 0xF0], 1               // SegCs: from user mode?
    jz 2f
    cmp rsi, [rip + MmUserProbeAddress]
    cmovae rsi, [rip + MmUserProbeAddress]
2:  lea r11, [rip + KiSystemServiceCopyEnd]
    sub r11, rax                                // eight bytes of code a copy
    jmp r11

    .balign 16
    .globl KiSystemServiceCopyStart
KiSystemServiceCopyStart:
    .irp offset, 0x70, 0x68, 0x60, 0x58, 0x50, 0x48, 0x40, 0x38, 0x30, 0x28, 0x20, 0x18, 0x10, 0x08
    mov rax, [rsi + \offset]                    // 48 8B 46 xx
    mov [rdi + \offset], rax                    // 48 89 47 xx
    .endr
    .globl KiSystemServiceCopyEnd
KiSystemServiceCopyEnd:
    call r10                                    // 41 FF D2
    lock inc qword ptr [rip + KeSystemCalls]

    .globl KiSystemServiceExit
KiSystemServiceExit:
    mov rbx, [rbp + 0xC0]
    mov rdi, [rbp + 0xC8]
    mov rsi, [rbp + 0xD0]
    mov r11, gs:[PCR_CurrentThread]
    test byte ptr [rbp + 0xF0], 1
    jz KiSystemServiceExitKernel

    cli
    ldmxcsr dword ptr [rbp - 0x54]
    xor r10d, r10d
    pxor xmm0, xmm0                             // nothing of the kernel leaks
    pxor xmm1, xmm1
    pxor xmm2, xmm2
    pxor xmm3, xmm3
    pxor xmm4, xmm4
    pxor xmm5, xmm5
    mov rcx, [rbp + 0xE8]                       // Rip
    mov r11, [rbp + 0xF8]                       // EFlags
    mov r8, [rbp + 0x100]                       // Rsp
    mov r9, [rbp + 0xD8]                        // Rbp
    xor edx, edx
    mov.s rbp, r9
    mov.s rsp, r8
    swapgs
    sysretq

KiSystemServiceExitKernel:
    mov rdx, [rbp + 0xB8]
    mov [r11 + KTHREAD_TrapFrame], rdx
    mov dl, [rbp - 0x58]
    mov [r11 + KTHREAD_PreviousMode], dl
    cli
    mov.s rsp, rbp
    mov rbp, [rbp + 0xD8]
    mov rsp, [rsp + 0x100]
    sti
    ret

// Where the page-fault handler sends a copy that faulted: the caller's stack
// is not what it said.
    .globl KiSystemServiceCopyFault
KiSystemServiceCopyFault:
    mov eax, 0xC0000005                         // STATUS_ACCESS_VIOLATION
    jmp KiSystemServiceExit

KiSystemServiceBadNumber:
    mov eax, 0xC000001C                         // STATUS_INVALID_SYSTEM_SERVICE
    jmp KiSystemServiceExit

// From a Zw stub, interrupts off, the machine frame already on the stack.
    .balign 64
    .globl KiServiceInternal
KiServiceInternal:
    sub rsp, 8                                  // 48 83 EC 08
    push rbp                                    // 55
    sub rsp, 0x158                              // 48 81 EC 58 01 00 00
    lea rbp, [rsp + 0x80]                       // 48 8D AC 24 80 00 00 00
    mov [rbp + 0xC0], rbx                       // 48 89 9D C0 00 00 00
    mov [rbp + 0xC8], rdi
    mov [rbp + 0xD0], rsi
    sti                                         // FB
    mov rbx, gs:[PCR_CurrentThread]             // 65 48 8B 1C 25 88 01 00 00
    prefetchw [rbx + KTHREAD_TrapFrame]
    movzx edi, byte ptr [rbx + KTHREAD_PreviousMode]
    mov [rbp - 0x58], dil
    mov byte ptr [rbx + KTHREAD_PreviousMode], 0
    mov r10, [rbx + KTHREAD_TrapFrame]
    mov [rbp + 0xB8], r10
    lea r11, [rip + KiSystemServiceStart]
    jmp r11

// What a Zw stub's machine frame gives as the place to return to.
    .globl KiServiceLinkage
KiServiceLinkage:
    ret

// SYSCALL from compatibility mode: there is none.
    .globl KiSystemCall32
KiSystemCall32:
    .byte 0x0F, 0x07                            // sysret to 32-bit code
