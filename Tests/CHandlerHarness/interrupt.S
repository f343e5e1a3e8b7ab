// Enters an interrupt's handler as a processor does, without a change of privilege level.

    .intel_syntax noprefix
    .text

// void harness_interrupt(const void *gate, uint64_t *place, uint64_t value)
// The handler has `place` in RSI and `value` in RDX, and returns to harness_interrupt_end.
    .globl harness_interrupt
harness_interrupt:
    push rbp
    mov rbp, rsp
    and rsp, -16
    mov rax, rsp
    mov ecx, ss
    push rcx
    push rax
    pushfq
    // A program may not change IF: the handler shall not try.
    and qword ptr [rsp], ~0x200
    mov ecx, cs
    push rcx
    lea rcx, [rip + harness_interrupt_returned]
    push rcx
    jmp rdi
    .globl harness_interrupt_returned
    .hidden harness_interrupt_returned
harness_interrupt_returned:
    mov rsp, rbp
    pop rbp
    ret

// uint64_t harness_interrupt_end(void)
    .globl harness_interrupt_end
harness_interrupt_end:
    lea rax, [rip + harness_interrupt_returned]
    ret

// uint64_t harness_code_segment(void), uint64_t harness_stack_segment(void)
    .globl harness_code_segment
harness_code_segment:
    mov eax, cs
    ret
    .globl harness_stack_segment
harness_stack_segment:
    mov eax, ss
    ret

    .section .note.GNU-stack, "", @progbits
