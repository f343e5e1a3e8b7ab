// The kernel's Zw stubs: a system call that the kernel makes to itself, with
// PreviousMode KernelMode. All of the list in services.inc, 32 bytes each, as
// on Windows x64:
//
//   48 8B C4              mov rax,rsp
//   FA                    cli
//   48 83 EC 10           sub rsp,10h
//   50                    push rax
//   9C                    pushfq
//   6A 10                 push 10h
//   48 8D 05 rel32        lea rax,[KiServiceLinkage]
//   50                    push rax
//   B8 imm32              mov eax,number
//   E9 rel32              jmp KiServiceInternal

    // `mov.s` picks the encoding that MASM would: opcode 8B, not 89.
    .intel_syntax noprefix

    .macro ZwStub number, name
    .balign 32
    .globl Zw\name
Zw\name:
    mov.s rax, rsp
    cli
    sub rsp, 0x10
    push rax
    pushfq
    push 0x10
    lea rax, [rip + KiServiceLinkage]
    push rax
    mov eax, \number
    jmp KiServiceInternal
    .endm

    .text
#define SERVICE(number, name, arguments, target) ZwStub number, name
#include "../../../common/services.inc"
#undef SERVICE
