// The kernel's entry: from the loader's stack to the idle thread's.

    .intel_syntax noprefix
#include "include/offsets.h"

    .section INIT, "xr"
    .globl _KiSystemStartup@4
_KiSystemStartup@4:                     // the boot block is on the stack
    cli
    mov ecx, [esp + 4]
    mov esp, offset _KiIdleStack + KERNEL_STACK_SIZE - KERNEL_STACK_RESERVE
    xor ebp, ebp
    push ecx
    call _KiInitializeKernel@4
    int3

    .section .data, "dw"
    .balign 4096
    .globl _KiIdleStack
_KiIdleStack:
    .skip KERNEL_STACK_SIZE
