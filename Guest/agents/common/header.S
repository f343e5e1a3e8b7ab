// The header that every agent begins with; agent.h has its fields.

    .section .header, "aw"
    .globl AgentHeader
    .hidden AgentHeader
AgentHeader:
    .quad 0x31746E6741676956
    .long 1
    .long AgentFileEnd - AgentHeader
    .long AgentEnd - AgentHeader
    .long AgentStart - AgentHeader
    .long AgentGateOffset
    .long AgentGateLength
    .long AgentDataOffset
    .long AgentThread - AgentHeader
    .balign 8
    .fill 0x100 - (. - AgentHeader), 1, 0
