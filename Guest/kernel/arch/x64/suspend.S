// What of a processor's state is neither in memory nor made anew by
// KiInitializeProcessor: to be put back after a sleep in which it lost all.

    .intel_syntax noprefix

    .text

// ULONG KiSaveProcessorState(KI_STATE *): 0; and once more, 1, when the state
// is restored. The caller must not have returned by then.
    .balign 16
    .globl KiSaveProcessorState
KiSaveProcessorState:
    fxsave64 [rcx]
    mov [rcx + 0x200], rbx
    mov [rcx + 0x208], rbp
    mov [rcx + 0x210], rsi
    mov [rcx + 0x218], rdi
    mov [rcx + 0x220], r12
    mov [rcx + 0x228], r13
    mov [rcx + 0x230], r14
    mov [rcx + 0x238], r15
    mov [rcx + 0x240], rsp
    mov rax, [rsp]
    mov [rcx + 0x248], rax
    mov rax, cr3
    mov [rcx + 0x250], rax
    mov rax, cr8
    mov [rcx + 0x258], rax
    xor eax, eax
    ret

// void KiRestoreProcessorState(const KI_STATE *): interrupts are off.
    .balign 16
    .globl KiRestoreProcessorState
KiRestoreProcessorState:
    mov rax, [rcx + 0x250]
    mov cr3, rax
    mov rax, [rcx + 0x258]
    mov cr8, rax
    fxrstor64 [rcx]
    mov rbx, [rcx + 0x200]
    mov rbp, [rcx + 0x208]
    mov rsi, [rcx + 0x210]
    mov rdi, [rcx + 0x218]
    mov r12, [rcx + 0x220]
    mov r13, [rcx + 0x228]
    mov r14, [rcx + 0x230]
    mov r15, [rcx + 0x238]
    mov rsp, [rcx + 0x240]
    mov rax, [rcx + 0x248]
    mov [rsp], rax
    mov eax, 1
    ret
