// Interrupts and exceptions: 256 stubs, one common path that makes the trap
// frame and hands it to KiDispatchTrap.

    .intel_syntax noprefix
#include "include/offsets.h"

    .text

// Vectors for which the processor pushes an error code: Intel SDM volume 3A,
// section 6.13.
#define HAS_ERROR_CODE(v) \
    ((v) == 8 || ((v) >= 10 && (v) <= 14) || (v) == 17 || (v) == 21)

// Sixteen bytes each, so that a vector's stub is found by its number.
    .balign 16
    .globl KiVectorStubs
KiVectorStubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if HAS_ERROR_CODE(vector)
    .else
    push 0
    .endif
    push vector                         // where RBP's slot will be
    .if (vector == 2) || (vector == 8) || (vector == 18)
    jmp KiFatalTrap
    .else
    jmp KiCommonTrap
    .endif
    .set vector, vector + 1
    .endr
    .balign 16

    .globl KiPageFault
    .set KiPageFault, KiVectorStubs + 14 * 16
    .globl KiBreakpointTrap
    .set KiBreakpointTrap, KiVectorStubs + 3 * 16

KiCommonTrap:
    cld
    xchg rbp, [rsp]                     // RBP saved, the vector in RBP
    sub rsp, 0x158
    test byte ptr [rsp + KTRAP_FRAME_SegCs], 1
    jz 1f
    swapgs
1:  mov [rsp + KTRAP_FRAME_Rax], rax
    mov [rsp + KTRAP_FRAME_Rcx], rcx
    mov [rsp + KTRAP_FRAME_Rdx], rdx
    mov [rsp + KTRAP_FRAME_R8], r8
    mov [rsp + KTRAP_FRAME_R9], r9
    mov [rsp + KTRAP_FRAME_R10], r10
    mov [rsp + KTRAP_FRAME_R11], r11
    mov [rsp + KTRAP_FRAME_Rbx], rbx
    mov [rsp + KTRAP_FRAME_Rdi], rdi
    mov [rsp + KTRAP_FRAME_Rsi], rsi
    mov rax, cr2
    mov [rsp + KTRAP_FRAME_FaultAddress], rax
    // The handlers use general registers only; a thread switch on the way
    // saves the vector registers.
    mov rcx, rsp
    mov edx, ebp
    lea rbp, [rsp + 0x80]
    sub rsp, 0x20
    call KiDispatchTrap
    add rsp, 0x20
    .globl KiTrapReturn
KiTrapReturn:
    cli
    mov rax, [rsp + KTRAP_FRAME_Rax]
    mov rcx, [rsp + KTRAP_FRAME_Rcx]
    mov rdx, [rsp + KTRAP_FRAME_Rdx]
    mov r8, [rsp + KTRAP_FRAME_R8]
    mov r9, [rsp + KTRAP_FRAME_R9]
    mov r10, [rsp + KTRAP_FRAME_R10]
    mov r11, [rsp + KTRAP_FRAME_R11]
    mov rbx, [rsp + KTRAP_FRAME_Rbx]
    mov rdi, [rsp + KTRAP_FRAME_Rdi]
    mov rsi, [rsp + KTRAP_FRAME_Rsi]
    test byte ptr [rsp + KTRAP_FRAME_SegCs], 1
    jz 2f
    swapgs
2:  add rsp, KTRAP_FRAME_Rbp
    pop rbp
    add rsp, 8                          // the error code
    iretq

// NMI, double fault, machine check: on stacks of their own, from anywhere,
// also from between SYSCALL and its SWAPGS. Whether GS is the kernel's is read
// from its base: all kernel addresses have the top bit set. None returns.
KiFatalTrap:
    cld
    xchg rbp, [rsp]
    sub rsp, 0x158
    mov ecx, 0xC0000101                 // IA32_GS_BASE
    rdmsr
    test edx, edx
    js 1f
    swapgs
1:  mov rcx, rsp
    mov edx, ebp
    and rsp, -16
    sub rsp, 0x20
    call KiDispatchTrap
    int3

// void KiEnterUserMode(Rip, Rsp, Argument): the first descent of a thread.
    .globl KiEnterUserMode
KiEnterUserMode:
    cli
    push KGDT64_R3_DATA | 3
    push rdx
    push 0x202                          // interrupts on
    push KGDT64_R3_CODE | 3
    push rcx
    mov rcx, r8
    xor eax, eax
    xor ebx, ebx
    xor edx, edx
    xor ebp, ebp
    xor esi, esi
    xor edi, edi
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
    swapgs
    iretq
