// NTSTATUS SetSystemPowerStateByInterrupt(action, state, flags): the system call as
// programs made it before SYSENTER, without ntdll.

    .intel_syntax noprefix

#define SET_SYSTEM_POWER_STATE 0x15F // of Windows 7 x86: common/services.inc
    .text
    .balign 16
    .globl _SetSystemPowerStateByInterrupt@12
_SetSystemPowerStateByInterrupt@12:
    mov eax, SET_SYSTEM_POWER_STATE
    lea edx, [esp + 4]
    int 0x2E
    ret 0x0C
