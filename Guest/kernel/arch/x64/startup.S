// The kernel's entry: from the loader's stack to the idle thread's.

    .intel_syntax noprefix
#include "include/offsets.h"

    .section INIT, "xr"
    .globl KiSystemStartup
KiSystemStartup:                        // RCX: the boot block
    cli
    lea rsp, [rip + KiIdleStack + KERNEL_STACK_SIZE - KERNEL_STACK_RESERVE]
    sub rsp, 0x28
    xor ebp, ebp
    call KiInitializeKernel
    int3

    .section .data, "dw"
    .balign 4096
    .globl KiIdleStack
KiIdleStack:
    .skip KERNEL_STACK_SIZE
