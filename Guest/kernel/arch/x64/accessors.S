// Exported accessors, in the instruction shapes of Windows 10 x64 (build
// 19041 and its successors, ntoskrnl.exe disassembled; the bytes beside them).
// A reader may take the layout of processes and threads from these bytes.

    .intel_syntax noprefix
#include "include/offsets.h"

    .macro Function name
    .balign 16
    .globl \name
\name:
    .endm

    .text

Function ExGetPreviousMode
    mov rax, gs:[PCR_CurrentThread]             // 65 48 8B 04 25 88 01 00 00
    mov al, [rax + KTHREAD_PreviousMode]        // 8A 80 32 02 00 00
    ret                                         // C3

// One body, two names, as in Windows.
Function PsGetCurrentProcess
    .globl IoGetCurrentProcess
IoGetCurrentProcess:
    mov rax, gs:[PCR_CurrentThread]             // 65 48 8B 04 25 88 01 00 00
    mov rax, [rax + KTHREAD_ApcState_Process]   // 48 8B 80 B8 00 00 00
    ret

Function KeGetCurrentThread
    .globl PsGetCurrentThread
PsGetCurrentThread:
    mov rax, gs:[PCR_CurrentThread]             // 65 48 8B 04 25 88 01 00 00
    ret

Function PsGetCurrentThreadId
    mov rax, gs:[PCR_CurrentThread]
    mov rax, [rax + ETHREAD_Cid_UniqueThread]   // 48 8B 80 80 04 00 00
    ret

Function PsGetCurrentProcessId
    mov rax, gs:[PCR_CurrentThread]
    mov rax, [rax + ETHREAD_Cid_UniqueProcess]  // 48 8B 80 78 04 00 00
    ret

Function PsGetProcessId
    mov rax, [rcx + EPROCESS_UniqueProcessId]   // 48 8B 81 40 04 00 00
    ret

Function PsGetProcessPeb
    mov rax, [rcx + EPROCESS_Peb]               // 48 8B 81 50 05 00 00
    ret

Function PsGetProcessImageFileName
    lea rax, [rcx + EPROCESS_ImageFileName]     // 48 8D 81 A8 05 00 00
    ret

Function PsGetProcessInheritedFromUniqueProcessId
    mov rax, [rcx + EPROCESS_InheritedFromUniqueProcessId] // 48 8B 81 40 05 00 00
    ret

Function PsGetProcessSectionBaseAddress
    mov rax, [rcx + EPROCESS_SectionBaseAddress] // 48 8B 81 20 05 00 00
    ret

Function PsGetThreadId
    mov rax, [rcx + ETHREAD_Cid_UniqueThread]   // 48 8B 81 80 04 00 00
    ret

Function PsGetThreadProcessId
    mov rax, [rcx + ETHREAD_Cid_UniqueProcess]  // 48 8B 81 78 04 00 00
    ret

Function PsGetThreadProcess
    mov rax, [rcx + KTHREAD_Process]            // 48 8B 81 20 02 00 00
    ret

Function PsGetThreadTeb
    mov rax, [rcx + KTHREAD_Teb]                // 48 8B 81 F0 00 00 00
    ret

Function PsIsSystemThread
    mov eax, [rcx + KTHREAD_MiscFlags]          // 8B 41 74
    shr eax, KTHREAD_SystemThreadBit            // C1 E8 0A
    and al, 1                                   // 24 01
    ret

// The interrupt time of the shared user data, read as its writer asks.
Function KeQueryInterruptTime
    mov rcx, KI_USER_SHARED_DATA + 8
1:  mov eax, [rcx + 4]                          // High1Time
    mov edx, [rcx]                              // LowPart
    cmp eax, [rcx + 8]                          // High2Time
    jne 2f
    shl rax, 32
    or rax, rdx
    ret
2:  pause
    jmp 1b

// The same less the time that the machine slept, as Windows biases it.
Function KeQueryUnbiasedInterruptTime
    sub rsp, 0x28
    call KeQueryInterruptTime
    mov rcx, KI_USER_SHARED_DATA + 0x3B0
    sub rax, [rcx]
    add rsp, 0x28
    ret
