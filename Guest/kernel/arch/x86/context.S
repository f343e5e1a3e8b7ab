// Switching threads, and what a call may clobber.

    .intel_syntax noprefix
#include "include/offsets.h"

    .text

// void KiSwapContext(PKTHREAD From, PKTHREAD To): the registers that a callee
// must keep, and all x87 and SSE state, which the kernel's own C never uses.
// Interrupts are off, the dispatcher lock is held.
    .balign 16
    .globl _KiSwapContext@8
_KiSwapContext@8:
    mov ecx, [esp + 4]
    mov edx, [esp + 8]
    push ebp
    push ebx
    push edi
    push esi
    mov eax, [ecx + KTHREAD_InitialStack]
    fxsave [eax - NPX_FRAME_LENGTH]
    mov [ecx + KTHREAD_KernelStack], esp
    mov esp, [edx + KTHREAD_KernelStack]
    mov eax, [edx + KTHREAD_InitialStack]
    fxrstor [eax - NPX_FRAME_LENGTH]
    pop esi
    pop edi
    pop ebx
    pop ebp
    ret 8

// Where a new thread's first switch returns to: its routine is in EBX, the
// argument in ESI (see KiInitialKernelStack).
    .balign 16
    .globl _KiThreadStartup@0
_KiThreadStartup@0:
    push esi
    push ebx
    call _KiThreadEntry@8
    int3

// NTSTATUS KeDelayExecutionThread(Mode, Alertable, Interval). Windows promises
// nothing about volatile registers across a call; here every one of them comes
// back different, so that a caller who relies on one is found out at once.
    .balign 16
    .globl _KeDelayExecutionThread@12
_KeDelayExecutionThread@12:
    mov.s edi, edi                              // 8B FF
    push ebp                                    // 55
    mov.s ebp, esp                              // 8B EC
    push [ebp + 0x10]
    push [ebp + 0x0C]
    push [ebp + 8]
    call _KiDelayExecutionThread@12
    mov ecx, 0x5A5A5A5A
    mov edx, ecx
    pop ebp
    ret 0x0C

// void RtlCaptureContext(PCONTEXT): the caller's registers, at Windows' offsets.
    .balign 16
    .globl _RtlCaptureContext@4
_RtlCaptureContext@4:
    push ebx                                    // 53
    mov ebx, [esp + 8]                          // 8B 5C 24 08
    mov [ebx + 0xB0], eax
    mov [ebx + 0xAC], ecx
    mov [ebx + 0xA8], edx
    mov eax, [esp]
    mov [ebx + 0xA4], eax                       // Ebx
    mov [ebx + 0xA0], esi
    mov [ebx + 0x9C], edi
    mov [ebx + 0xBC], cs
    mov [ebx + 0x98], ds
    mov [ebx + 0x94], es
    mov [ebx + 0x90], fs
    mov [ebx + 0x8C], gs
    mov [ebx + 0xC8], ss
    pushfd
    pop dword ptr [ebx + 0xC0]
    mov eax, [ebp + 4]                          // as Windows: of the caller's frame
    mov [ebx + 0xB8], eax
    mov eax, [ebp]
    mov [ebx + 0xB4], eax
    lea eax, [ebp + 8]
    mov [ebx + 0xC4], eax
    mov eax, [ebx + 0xB0]
    pop ebx
    ret 4

// void KeBugCheckEx(Code, P1, P2, P3, P4): its arguments once more, and no trap frame.
    .balign 16
    .globl _KeBugCheckEx@20
_KeBugCheckEx@20:
    mov.s edi, edi                              // 8B FF
    push ebp                                    // 55
    mov.s ebp, esp                              // 8B EC
    push 0                                      // 6A 00
    push [ebp + 0x18]                           // FF 75 18
    push [ebp + 0x14]                           // FF 75 14
    push [ebp + 0x10]                           // FF 75 10
    push [ebp + 0x0C]                           // FF 75 0C
    push [ebp + 8]                              // FF 75 08
    call _KeBugCheck2@24                        // E8 rel32
    int3

// void KeBugCheck(Code): the same, with nothing else to say.
    .balign 16
    .globl _KeBugCheck@4
_KeBugCheck@4:
    mov.s edi, edi
    push ebp
    mov.s ebp, esp
    push 0
    push 0
    push 0
    push 0
    push 0
    push [ebp + 8]
    call _KeBugCheck2@24
    int3
