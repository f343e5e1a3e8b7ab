// Interrupts and exceptions: 256 stubs, one common path that makes the trap
// frame and hands it to KiDispatchTrap.

    .intel_syntax noprefix
#include "include/offsets.h"

    .text

// Vectors for which the processor pushes an error code: Intel SDM volume 3A,
// section 6.13.
#define HAS_ERROR_CODE(v) \
    ((v) == 8 || ((v) >= 10 && (v) <= 14) || (v) == 17 || (v) == 21)

// Sixteen bytes each, so that a vector's stub is found by its number. Those of
// vectors 2, 8 and 2Eh are not used: there are tasks, and KiSystemService.
    .balign 16
    .globl _KiVectorStubs
_KiVectorStubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if HAS_ERROR_CODE(vector)
    .else
    push 0
    .endif
    push vector                         // where EBP's slot will be
    jmp KiCommonTrap
    .set vector, vector + 1
    .endr
    .balign 16

    .globl _KiPageFault
    .set _KiPageFault, _KiVectorStubs + 14 * 16

KiCommonTrap:
    cld
    xchg ebp, [esp]                     // EBP saved, the vector in EBP
    sub esp, KTRAP_FRAME_Ebp
    mov [esp + KTRAP_FRAME_Ebx], ebx
    mov [esp + KTRAP_FRAME_Esi], esi
    mov [esp + KTRAP_FRAME_Edi], edi
    mov [esp + KTRAP_FRAME_Eax], eax
    mov [esp + KTRAP_FRAME_Ecx], ecx
    mov [esp + KTRAP_FRAME_Edx], edx
    mov [esp + KTRAP_FRAME_SegFs], fs
    mov [esp + KTRAP_FRAME_SegDs], ds
    mov [esp + KTRAP_FRAME_SegEs], es
    mov [esp + KTRAP_FRAME_SegGs], gs
    mov eax, KGDT_R0_PCR
    mov fs, eax
    mov eax, KGDT_R3_DATA | 3
    mov ds, eax
    mov es, eax
    mov eax, fs:[KPCR_ExceptionList]
    mov [esp + KTRAP_FRAME_ExceptionList], eax
    mov eax, cr2
    mov [esp + 0x14], eax               // FaultAddress
    // The handlers use general registers only; a thread switch on the way
    // saves the vector registers.
    mov eax, esp
    mov edx, ebp
    mov ebp, esp
    push edx
    push eax
    call _KiDispatchTrap@8
    .globl _KiTrapReturn
_KiTrapReturn:
    cli
    mov eax, [esp + KTRAP_FRAME_ExceptionList]
    mov fs:[KPCR_ExceptionList], eax
    mov gs, [esp + KTRAP_FRAME_SegGs]
    mov es, [esp + KTRAP_FRAME_SegEs]
    mov ds, [esp + KTRAP_FRAME_SegDs]
    mov edx, [esp + KTRAP_FRAME_Edx]
    mov ecx, [esp + KTRAP_FRAME_Ecx]
    mov eax, [esp + KTRAP_FRAME_Eax]
    mov fs, [esp + KTRAP_FRAME_SegFs]
    mov edi, [esp + KTRAP_FRAME_Edi]
    mov esi, [esp + KTRAP_FRAME_Esi]
    mov ebx, [esp + KTRAP_FRAME_Ebx]
    add esp, KTRAP_FRAME_Ebp
    pop ebp
    add esp, 4                          // the error code
    iretd

// Double fault and NMI: tasks, on stacks of their own, as on Windows. Neither
// returns.
    .globl _KiDoubleFaultTask, _KiNmiTask
_KiDoubleFaultTask:
    mov eax, 8
    jmp KiFatalTask
_KiNmiTask:
    mov eax, 2
KiFatalTask:
    cld
    push eax
    call _KiFatalTrap@4
    int3

// void KiEnterUserMode(Eip, Esp, Argument): the first descent of a thread. The
// argument is on its stack already.
    .globl _KiEnterUserMode@12
_KiEnterUserMode@12:
    cli
    mov ecx, [esp + 4]
    mov edx, [esp + 8]
    push KGDT_R3_DATA | 3
    push edx
    push 0x202                          // interrupts on
    push KGDT_R3_CODE | 3
    push ecx
    mov eax, KGDT_R3_TEB | 3
    mov fs, eax
    xor eax, eax
    mov gs, eax
    xor ebx, ebx
    xor ecx, ecx
    xor edx, edx
    xor ebp, ebp
    xor esi, esi
    xor edi, edi
    iretd
