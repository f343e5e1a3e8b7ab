// Switching threads, and what a call may clobber.

    .intel_syntax noprefix
#include "include/offsets.h"

    .text

// void KiSwapContext(PKTHREAD From, PKTHREAD To): the registers that a callee
// must keep, and all x87 and SSE state, which the kernel's own C never uses.
// Interrupts are off, the dispatcher lock is held.
    .balign 16
    .globl KiSwapContext
KiSwapContext:
    push rbp
    push rbx
    push rdi
    push rsi
    push r12
    push r13
    push r14
    push r15
    mov rax, [rcx + KTHREAD_StateSaveArea]
    fxsave64 [rax]
    mov [rcx + KTHREAD_KernelStack], rsp
    mov rsp, [rdx + KTHREAD_KernelStack]
    mov rax, [rdx + KTHREAD_StateSaveArea]
    fxrstor64 [rax]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rsi
    pop rdi
    pop rbx
    pop rbp
    ret

// Where a new thread's first switch returns to: its routine is in R12, the
// argument in R13 (see KiInitialKernelStack).
    .balign 16
    .globl KiThreadStartup
KiThreadStartup:
    mov rcx, r12
    mov rdx, r13
    sub rsp, 0x28
    call KiThreadEntry
    int3

// NTSTATUS KeDelayExecutionThread(Mode, Alertable, Interval). Windows promises
// nothing about volatile registers across a call; here every one of them comes
// back different, so that a caller who relies on one is found out at once.
    .balign 16
    .globl KeDelayExecutionThread
KeDelayExecutionThread:
    sub rsp, 0x28
    call KiDelayExecutionThread
    add rsp, 0x28
    mov rcx, 0x5A5A5A5A5A5A5A5A
    mov rdx, rcx
    mov r8, rcx
    mov r9, rcx
    mov r10, rcx
    mov r11, rcx
    movq xmm0, rcx
    movq xmm1, rcx
    movq xmm2, rcx
    movq xmm3, rcx
    movq xmm4, rcx
    movq xmm5, rcx
    ret

// void RtlCaptureContext(PCONTEXT): the caller's registers, at Windows' offsets.
    .balign 16
    .globl RtlCaptureContext
RtlCaptureContext:
    pushfq
    mov [rcx + 0x78], rax
    mov [rcx + 0x80], rcx
    mov [rcx + 0x88], rdx
    mov [rcx + 0x90], rbx
    lea rax, [rsp + 0x10]
    mov [rcx + 0x98], rax
    mov [rcx + 0xA0], rbp
    mov [rcx + 0xA8], rsi
    mov [rcx + 0xB0], rdi
    mov [rcx + 0xB8], r8
    mov [rcx + 0xC0], r9
    mov [rcx + 0xC8], r10
    mov [rcx + 0xD0], r11
    mov [rcx + 0xD8], r12
    mov [rcx + 0xE0], r13
    mov [rcx + 0xE8], r14
    mov [rcx + 0xF0], r15
    mov rax, [rsp + 8]
    mov [rcx + 0xF8], rax
    mov eax, [rsp]
    mov [rcx + 0x44], eax
    add rsp, 8
    ret

// void KeBugCheckEx(Code, P1, P2, P3, P4). The home space keeps the arguments,
// for a debugger, and for what follows after all registers were saved.
    .balign 16
    .globl KeBugCheckEx
KeBugCheckEx:
    mov [rsp + 8], rcx                          // 48 89 4C 24 08
    mov [rsp + 0x10], rdx                       // 48 89 54 24 10
    mov [rsp + 0x18], r8                        // 4C 89 44 24 18
    mov [rsp + 0x20], r9                        // 4C 89 4C 24 20
    pushfq                                      // 9C
    sub rsp, 0x30                               // 48 83 EC 30
    cli
    lea rcx, [rip + KiBugCheckContext]
    call RtlCaptureContext
    mov ecx, [rsp + 0x40]
    mov rdx, [rsp + 0x48]
    mov r8, [rsp + 0x50]
    mov r9, [rsp + 0x58]
    mov rax, [rsp + 0x60]
    mov [rsp + 0x20], rax
    and qword ptr [rsp + 0x28], 0               // no trap frame
    call KeBugCheck2
    int3

// void KeBugCheck(Code): the same, with nothing else to say.
    .balign 16
    .globl KeBugCheck
KeBugCheck:
    sub rsp, 0x38
    xor edx, edx
    xor r8d, r8d
    xor r9d, r9d
    mov [rsp + 0x20], rdx
    mov [rsp + 0x28], rdx
    call KeBugCheck2
    int3
