// Where the interrupt's gate leads, interrupts off.

    .intel_syntax noprefix
    .set AGENT_Inside, 0x7C

// Whoever stands in `.gate` is not counted, or no longer: in all other code of the agent's everybody is.
//
// Code has pages of its own: a processor that writes near what it executes, as here to the header and to AgentData at
// every interrupt, takes that for code that changes.
    .section .gate, "ax", @progbits
    .balign 4096
    .globl AgentGate
    .hidden AgentGate
AgentGate:
    lock inc dword ptr [rip + AgentHeader + AGENT_Inside]
    jmp FilterEntry
FilterLeave:
    lock dec dword ptr [rip + AgentHeader + AGENT_Inside]
    iretq

    .text
FilterEntry:
    // In the order of FILTER_FRAME, backwards. The processor aligned the stack before it pushed its five words.
    push r15
    push r14
    push r13
    push r12
    push r11
    push r10
    push r9
    push r8
    push rdi
    push rsi
    push rbp
    push rsp
    push rbx
    push rdx
    push rcx
    push rax
    cld
    mov rdi, rsp
    sub rsp, 8
    call FilterHandle
    add rsp, 8
    test rax, rax
    jz 1f
    .globl FilterReportPoint
    .hidden FilterReportPoint
FilterReportPoint:
    nop
1:  pop rax
    pop rcx
    pop rdx
    pop rbx
    add rsp, 8
    pop rbp
    pop rsi
    pop rdi
    pop r8
    pop r9
    pop r10
    pop r11
    pop r12
    pop r13
    pop r14
    pop r15
    jmp FilterLeave
