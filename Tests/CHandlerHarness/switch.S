// Leaves this process's own state for a given one, and comes back.

    .intel_syntax noprefix
    .text

    .set FLAGS_WORD, 15 * 8
    .set RSP_WORD, 16 * 8
    .set MXCSR_WORD, 17 * 8
    .set XMM, 18 * 8

.macro each_vector operation
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    \operation \n
    .endr
.endm
.macro load_vector n
    movups xmm\n, [rax + XMM + 16 * \n]
.endm
.macro store_vector n
    movups [rax + XMM + 16 * \n], xmm\n
.endm

// void harness_switch(const uint64_t *in)
    .globl harness_switch
    .hidden harness_switch
harness_switch:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    stmxcsr [rip + harness_host_mxcsr]
    mov [rip + harness_host_rsp], rsp
    mov rax, rdi
    each_vector load_vector
    ldmxcsr [rax + MXCSR_WORD]
    mov rsp, [rax + RSP_WORD]
    push qword ptr [rax + FLAGS_WORD]
    mov rcx, [rax + 8]
    mov rdx, [rax + 16]
    mov rbx, [rax + 24]
    mov rbp, [rax + 32]
    mov rsi, [rax + 40]
    mov rdi, [rax + 48]
    mov r8, [rax + 56]
    mov r9, [rax + 64]
    mov r10, [rax + 72]
    mov r11, [rax + 80]
    mov r12, [rax + 88]
    mov r13, [rax + 96]
    mov r14, [rax + 104]
    mov r15, [rax + 112]
    popfq
    mov rax, [rax]
    jmp qword ptr [rip + harness_target]

// Where the handler arrives: the state is taken down before anything of it changes.
    .globl harness_arrive
    .hidden harness_arrive
harness_arrive:
    mov [rip + harness_saved_rax], rax
    mov rax, [rip + harness_out]
    mov [rax + 8], rcx
    mov [rax + 16], rdx
    mov [rax + 24], rbx
    mov [rax + 32], rbp
    mov [rax + 40], rsi
    mov [rax + 48], rdi
    mov [rax + 56], r8
    mov [rax + 64], r9
    mov [rax + 72], r10
    mov [rax + 80], r11
    mov [rax + 88], r12
    mov [rax + 96], r13
    mov [rax + 104], r14
    mov [rax + 112], r15
    mov [rax + RSP_WORD], rsp
    pushfq
    pop qword ptr [rax + FLAGS_WORD]
    mov rcx, [rip + harness_saved_rax]
    mov [rax], rcx
    mov qword ptr [rax + MXCSR_WORD], 0
    stmxcsr [rax + MXCSR_WORD]
    each_vector store_vector
    cld
    ldmxcsr [rip + harness_host_mxcsr]
    mov rsp, [rip + harness_host_rsp]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

// NTSTATUS KeDelayExecutionThread(mode, alertable, interval), Microsoft x64.
    .globl harness_delay
    .hidden harness_delay
harness_delay:
    pushfq
    push rbp
    mov rbp, rsp
    push rsi
    push rdi
    sub rsp, 10 * 16
    .irp n, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups [rsp + 16 * (\n - 6)], xmm\n
    .endr
    mov rsi, rsp
    // struct harness_delay_call
    mov rax, [rbp + 8]
    push rax
    push r8
    push rdx
    push rcx
    lea rax, [rbp + 16]
    push rax
    mov rdi, rsp
    // The shadow space is the callee's.
    mov rax, -1
    mov [rbp + 24], rax
    mov [rbp + 32], rax
    mov [rbp + 40], rax
    mov [rbp + 48], rax
    push rsi
    cld
    ldmxcsr [rip + harness_host_mxcsr]
    // Whatever the handler made of the stack, the host's convention wants it aligned.
    push rbx
    mov rbx, rsp
    and rsp, -16
    call harness_report_delay
    mov rsp, rbx
    pop rbx
    pop rsi
    mov rsp, rsi
    .irp n, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups xmm\n, [rsp + 16 * (\n - 6)]
    .endr
    add rsp, 10 * 16
    pop rdi
    pop rsi
    pop rbp
    lea rsp, [rsp + 8]
    // All that the convention calls volatile is destroyed.
    .irp n, 0, 1, 2, 3, 4, 5
    pcmpeqd xmm\n, xmm\n
    .endr
    push 0x7fbf
    ldmxcsr [rsp]
    mov rax, 0xa5a5a5a5a5a5a5a5
    mov [rsp], rax
    mov rcx, rax
    mov rdx, rax
    mov r8, rax
    mov r9, rax
    mov r10, rax
    mov r11, rax
    add rsp, 8
    stc
    ret

    .section .note.GNU-stack, "", @progbits
