// The kernel's Zw stubs: a system call that the kernel makes to itself, with
// PreviousMode KernelMode. All of the list in services.inc, as on Windows x86:
//
//   B8 imm32              mov eax,number
//   8D 54 24 04           lea edx,[esp+4]
//   9C                    pushfd
//   6A 08                 push 8
//   E8 rel32              call KiSystemService
//   C2 imm16              ret 4*arguments (C3 where there are none)

    .intel_syntax noprefix

    .macro ZwStub number, name, arguments
    .balign 4
    .set ZwBytes, 4 * \arguments
    ZwStubOf \number, \name, %ZwBytes
    .endm

    .altmacro
    .macro ZwStubOf number, name, bytes
    .globl _Zw\name\()@\bytes
_Zw\name\()@\bytes:
    mov eax, \number
    lea edx, [esp + 4]
    pushfd
    push 8
    call _KiSystemService
    .if \bytes
    ret \bytes
    .else
    ret
    .endif
    .endm

    .text
#define SERVICE(number, name, arguments, target) ZwStub number, name, arguments
#include "../../../common/services.inc"
#undef SERVICE
