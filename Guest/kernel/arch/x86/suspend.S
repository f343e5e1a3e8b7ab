// What of a processor's state is neither in memory nor made anew by
// KiInitializeProcessor: to be put back after a sleep in which it lost all.

    .intel_syntax noprefix
#include "include/offsets.h"

    .text

// ULONG KiSaveProcessorState(KI_STATE *): 0; and once more, 1, when the state
// is restored. The caller must not have returned by then.
    .balign 16
    .globl _KiSaveProcessorState@4
_KiSaveProcessorState@4:
    mov ecx, [esp + 4]
    fxsave [ecx]
    mov [ecx + 0x200], ebx
    mov [ecx + 0x204], ebp
    mov [ecx + 0x208], esi
    mov [ecx + 0x20C], edi
    mov [ecx + 0x210], esp
    mov eax, [esp]
    mov [ecx + 0x214], eax
    mov eax, cr3
    mov [ecx + 0x218], eax
    mov eax, [MM_LOCAL_APIC_TPR]
    mov [ecx + 0x21C], eax
    xor eax, eax
    ret 4

// void KiRestoreProcessorState(const KI_STATE *): interrupts are off.
    .balign 16
    .globl _KiRestoreProcessorState@4
_KiRestoreProcessorState@4:
    mov ecx, [esp + 4]
    mov eax, [ecx + 0x218]
    mov cr3, eax
    mov eax, [ecx + 0x21C]
    mov [MM_LOCAL_APIC_TPR], eax
    fxrstor [ecx]
    mov ebx, [ecx + 0x200]
    mov ebp, [ecx + 0x204]
    mov esi, [ecx + 0x208]
    mov edi, [ecx + 0x20C]
    mov esp, [ecx + 0x210]
    mov eax, [ecx + 0x214]
    mov [esp], eax
    mov eax, 1
    ret 4
