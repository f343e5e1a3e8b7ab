// The last steps of an agent's thread.

    .intel_syntax noprefix
    .set AGENT_PsTerminateSystemThread, 0x30
    .set AGENT_ExFreePoolWithTag, 0x50
    .set AGENT_Tag, 0x60
    .set AGENT_Stage, 0x78
    .set AGENT_ReturnInstruction, 0xD0

    .text

// rcx: the agent, edx: the stage to leave behind. An interrupt that comes between the store and the jump would
// leave a thread in memory that is said to be empty: so they are off, and `sti` holds them back for one
// instruction more (Intel SDM volume 2, STI), which is the jump.
    .globl AgentLeave
    .hidden AgentLeave
AgentLeave:
    mov rax, [rcx + AGENT_PsTerminateSystemThread]
    and rsp, -16
    sub rsp, 0x28                       // home space, and the return address of a call that is none
    mov qword ptr [rsp], 0
    cli
    mov [rcx + AGENT_Stage], edx
    xor ecx, ecx
    sti
    jmp rax

// rcx: the agent. A function that returns to another one enters it with a stack that is eight bytes off, so
// there is a `ret` of the guest's in between.
    .globl AgentFreeAndLeave
    .hidden AgentFreeAndLeave
AgentFreeAndLeave:
    mov rax, [rcx + AGENT_ExFreePoolWithTag]
    mov r8, [rcx + AGENT_PsTerminateSystemThread]
    mov r9, [rcx + AGENT_ReturnInstruction]
    mov edx, [rcx + AGENT_Tag]
    mov qword ptr [rcx], 0              // no agent any more, for whoever looks
    and rsp, -16
    sub rsp, 0x30                       // home space, and the return address of a call that is none
    mov qword ptr [rsp + 8], 0
    mov [rsp], r8                       // PsTerminateSystemThread
    push r9                             // where ExFreePoolWithTag returns to
    jmp rax
