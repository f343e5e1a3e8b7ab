// Exported accessors, in the instruction shapes of Windows 7 SP1 x86 (build 7601,
// ntoskrnl.exe and ntkrnlpa.exe disassembled; the bytes beside them). A reader may
// take the layout of processes and threads from these bytes. `mov.s` picks the
// encoding that MASM would: opcode 8B, not 89.

    .intel_syntax noprefix
#include "include/offsets.h"

    .macro Function name
    .balign 16
    .globl \name
\name:
    .endm

    // With room to patch and a frame, as the compiler of Windows begins a function.
    .macro Begin
    mov.s edi, edi                              // 8B FF
    push ebp                                    // 55
    mov.s ebp, esp                              // 8B EC
    .endm

    .text

Function _ExGetPreviousMode@0
    mov eax, fs:[PCR_CurrentThread]             // 64 A1 24 01 00 00
    mov al, [eax + KTHREAD_PreviousMode]        // 8A 80 3A 01 00 00
    ret                                         // C3

// One body, two names, as in Windows.
Function _PsGetCurrentProcess@0
    .globl _IoGetCurrentProcess@0
_IoGetCurrentProcess@0:
    mov eax, fs:[PCR_CurrentThread]             // 64 A1 24 01 00 00
    mov eax, [eax + KTHREAD_ApcState_Process]   // 8B 40 50
    ret                                         // C3

Function _KeGetCurrentThread@0
    .globl _PsGetCurrentThread@0
_PsGetCurrentThread@0:
    mov eax, fs:[PCR_CurrentThread]             // 64 A1 24 01 00 00
    ret

Function _PsGetCurrentThreadId@0
    mov eax, fs:[PCR_CurrentThread]
    mov eax, [eax + ETHREAD_Cid_UniqueThread]   // 8B 80 30 02 00 00
    ret

Function _PsGetCurrentProcessId@0
    mov eax, fs:[PCR_CurrentThread]
    mov eax, [eax + ETHREAD_Cid_UniqueProcess]  // 8B 80 2C 02 00 00
    ret

    // A field of the object that is the only argument.
    .macro Field name, offset
Function \name
    Begin
    mov eax, [ebp + 8]                          // 8B 45 08
    mov eax, [eax + \offset]                    // 8B 80 offset (8B 40 where it is a byte)
    pop ebp                                     // 5D
    ret 4                                       // C2 04 00
    .endm

    Field _PsGetProcessId@4, EPROCESS_UniqueProcessId               // B4 00 00 00
    Field _PsGetProcessPeb@4, EPROCESS_Peb                          // A8 01 00 00
    Field _PsGetProcessInheritedFromUniqueProcessId@4, EPROCESS_InheritedFromUniqueProcessId // 40 01 00 00
    Field _PsGetProcessSectionBaseAddress@4, EPROCESS_SectionBaseAddress // 2C 01 00 00
    Field _PsGetThreadId@4, ETHREAD_Cid_UniqueThread                // 30 02 00 00
    Field _PsGetThreadProcessId@4, ETHREAD_Cid_UniqueProcess        // 2C 02 00 00
    Field _PsGetThreadProcess@4, KTHREAD_Process                    // 50 01 00 00
    .globl _IoThreadToProcess@4
    .set _IoThreadToProcess@4, _PsGetThreadProcess@4
    Field _PsGetThreadTeb@4, KTHREAD_Teb                            // 88 00 00 00

Function _PsGetProcessImageFileName@4
    Begin
    mov eax, [ebp + 8]                          // 8B 45 08
    add eax, EPROCESS_ImageFileName             // 05 6C 01 00 00
    pop ebp                                     // 5D
    ret 4                                       // C2 04 00

Function _PsIsSystemThread@4
    Begin
    mov eax, [ebp + 8]                          // 8B 45 08
    mov eax, [eax + KTHREAD_MiscFlags]          // 8B 40 3C
    shr eax, KTHREAD_SystemThreadBit            // C1 E8 0D
    and al, 1                                   // 24 01
    pop ebp
    ret 4

// The interrupt time of the shared user data, read as its writer asks.
Function _KeQueryInterruptTime@0
1:  mov edx, [KI_USER_SHARED_DATA + 0x0C]       // High1Time
    mov eax, [KI_USER_SHARED_DATA + 0x08]       // LowPart
    cmp edx, [KI_USER_SHARED_DATA + 0x10]       // High2Time
    jne 2f
    ret
2:  pause
    jmp 1b

// The same less the time that the machine slept, as Windows biases it.
Function _KeQueryUnbiasedInterruptTime@0
    call _KeQueryInterruptTime@0
    sub eax, [KI_USER_SHARED_DATA + 0x3B0]
    sbb edx, [KI_USER_SHARED_DATA + 0x3B4]
    ret
