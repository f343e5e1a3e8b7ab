// ntdll's system-call stubs, 16 bytes each, in the shape of Windows 7 x86:
//
//   B8 imm32                   mov eax,number
//   BA 00 03 FE 7F             mov edx,SharedUserData+300h
//   FF 12                      call dword ptr [edx]
//   C2 imm16                   ret 4*arguments (C3 where there are none)

    // `mov.s` picks the encoding that MASM would: opcode 8B, not 89.
    .intel_syntax noprefix
    .altmacro

    .macro NtStub number, name, arguments
    .set NtBytes, 4 * \arguments
    NtStubOf \number, \name, %NtBytes
    .endm

    .macro NtStubOf number, name, bytes
    .balign 16
    .globl _Nt\name\()@\bytes
_Nt\name\()@\bytes:
    mov eax, \number
    mov edx, 0x7FFE0300
    call dword ptr [edx]
    .if \bytes
    ret \bytes
    .else
    ret
    .endif
    .section .drectve, "yn"
    .ascii " /EXPORT:Nt\name=_Nt\name\()@\bytes"
    .text
    .endm

    .text
#define SERVICE(number, name, arguments, target) NtStub number, name, arguments
#include "../../../common/services.inc"
#undef SERVICE

// Where SharedUserData leads on a processor that has SYSENTER, and where the kernel
// comes back to.
    .balign 16
    .globl _KiFastSystemCall@0
_KiFastSystemCall@0:
    mov.s edx, esp                      // 8B D4
    sysenter                            // 0F 34
    .globl _KiFastSystemCallRet@0
_KiFastSystemCallRet@0:
    ret                                 // C3

// And on one that has not, with an entry of its own: the arguments are behind both
// return addresses.
    .balign 16
    .globl _KiIntSystemCall@0
_KiIntSystemCall@0:
    lea edx, [esp + 8]                  // 8D 54 24 08
    int 0x2E                            // CD 2E
    ret                                 // C3

    .section .drectve, "yn"
    .ascii " /EXPORT:KiFastSystemCall=_KiFastSystemCall@0"
    .ascii " /EXPORT:KiFastSystemCallRet=_KiFastSystemCallRet@0"
    .ascii " /EXPORT:KiIntSystemCall=_KiIntSystemCall@0"
