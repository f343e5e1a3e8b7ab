// Switching threads, and what a call may clobber.

    .intel_syntax noprefix
#include "../include/offsets.h"

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
// argument in R13 (see PspCreateThread).
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

// void KeBugCheckEx(Code, P1, P2, P3, P4). Windows saves all registers first
// and does not return; the home space keeps the arguments, for a debugger.
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
    mov rax, [rsp + 0x60]
    mov [rsp + 0x20], rax
    call KiBugCheckReport
    int3
