// ntdll's system-call stubs, 32 bytes each, in the shape of Windows 10 x64:
//
//   4C 8B D1                   mov r10,rcx
//   B8 imm32                   mov eax,number
//   F6 04 25 08 03 FE 7F 01    test byte ptr [SharedUserData+308h],1
//   75 03                      jne +3
//   0F 05                      syscall
//   C3                         ret
//   CD 2E                      int 2Eh
//   C3                         ret

    .intel_syntax noprefix

    .macro NtStub number, name
    .balign 16
    .globl Nt\name
Nt\name:
    mov.s r10, rcx                      // .s: the other of the two encodings
    mov eax, \number
    test byte ptr [0x7FFE0308], 1
    jne 1f
    syscall
    ret
1:  int 0x2E
    ret
    .section .drectve, "yn"
    .ascii " /EXPORT:Nt\name"
    .text
    .endm

    .text
#define SERVICE(number, name, arguments, target) NtStub number, name
#include "../../../common/services.inc"
#undef SERVICE
