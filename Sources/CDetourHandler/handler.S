// The detour's handler: position-independent x86-64 code for the guest's kernel.
//
// Vigil writes it into zeroed slack of the kernel's image when a caller is to be held, moves the caller's
// RIP from the intercepted function's entry to one of the stubs, and zeroes it again when the last caller
// has come back to the entry. The guest executes it read-only: everything here that changes, Vigil changes.
//
// While it waits, the caller gives way to the guest's other threads by the guest's own
// KeDelayExecutionThread. Two things end the wait: its byte in `cdetour_wait` becomes 0, or the lease byte
// has not changed for `cdetour_lease_limit` of the guest's own unbiased interrupt time, which means that
// neither Vigil nor its guardian lives.
//
// Calling convention of the guest: Microsoft x64 (arguments in rcx, rdx, r8; 32 bytes of shadow space; rax,
// rcx, rdx, r8-r11 and xmm0-xmm5 volatile). The intercepted function's arguments must survive, so every
// register is saved.

#if !defined(__x86_64__)
#error "the handler is assembled as host code: build Vigil on x86-64"
#endif

    .intel_syntax noprefix
    .section .rodata
    .balign 16

// KUSER_SHARED_DATA (Windows Driver Kit, ntddk.h).
    .set INTERRUPT_TIME, 0x08
    .set INTERRUPT_TIME_BIAS, 0x3b0

// Frame below the saved registers, from rsp: shadow space, xmm0-xmm5, MXCSR.
    .set XMM, 0x20
    .set SAVED_MXCSR, 0x80
    .set FRAME, 0x90
// From rbp: fifteen saved registers, RFLAGS, then what the stub pushed.
    .set SLOT, 15 * 8 + 8

// Reads the guest's unbiased interrupt time into rax; clobbers rcx and rdx. An aligned 8-byte load is one
// access, and the kernel stores the low and first high part in one (as KeQueryInterruptTime relies on). A bias
// that changed meanwhile means that the guest slept in between: then once more.
.macro unbiased_time
    mov rdx, [rip + cdetour_shared_data]
1:  mov rcx, [rdx + INTERRUPT_TIME_BIAS]
    mov rax, [rdx + INTERRUPT_TIME]
    cmp rcx, [rdx + INTERRUPT_TIME_BIAS]
    jne 1b
    sub rax, rcx
.endm

    .globl cdetour_handler_start, cdetour_handler_end
    .globl cdetour_stubs, cdetour_stub_size, cdetour_slots
    .globl cdetour_wait, cdetour_lease, cdetour_lease_limit, cdetour_shared_data
    .globl cdetour_delay_function, cdetour_delay_interval, cdetour_entry

cdetour_handler_start:
cdetour_stubs:
    .set slot, 0
    .rept 8
    .byte 0x6a, slot  // push slot; Intel syntax would take a symbol for memory
    jmp common
    .balign 8, 0xcc
    .set slot, slot + 1
    .endr

common:
    pushfq
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    mov rbp, rsp
    cld
    sub rsp, FRAME
    and rsp, -16
    movaps [rsp + XMM + 0x00], xmm0
    movaps [rsp + XMM + 0x10], xmm1
    movaps [rsp + XMM + 0x20], xmm2
    movaps [rsp + XMM + 0x30], xmm3
    movaps [rsp + XMM + 0x40], xmm4
    movaps [rsp + XMM + 0x50], xmm5
    stmxcsr [rsp + SAVED_MXCSR]

    // rbx: this caller's wait byte. r12b: the lease byte as last seen, r13: when it was seen to change.
    mov eax, [rbp + SLOT]
    lea rbx, [rip + cdetour_wait]
    add rbx, rax
    mov r12b, [rip + cdetour_lease]
    xor r13d, r13d
    cmp qword ptr [rip + cdetour_shared_data], 0
    je wait_loop
    unbiased_time
    mov r13, rax

wait_loop:
    cmp byte ptr [rbx], 0
    je leave_handler
    cmp qword ptr [rip + cdetour_shared_data], 0
    je give_way
    unbiased_time
    mov cl, [rip + cdetour_lease]
    cmp cl, r12b
    je lease_unchanged
    mov r12b, cl
    mov r13, rax
lease_unchanged:
    sub rax, r13
    cmp rax, [rip + cdetour_lease_limit]
    jae leave_handler
give_way:
    mov rax, [rip + cdetour_delay_function]
    test rax, rax
    jz spin
    // KeDelayExecutionThread(KernelMode, FALSE, &interval)
    xor ecx, ecx
    xor edx, edx
    lea r8, [rip + cdetour_delay_interval]
    call rax
    jmp wait_loop
spin:
    pause
    jmp wait_loop

leave_handler:
    movaps xmm0, [rsp + XMM + 0x00]
    movaps xmm1, [rsp + XMM + 0x10]
    movaps xmm2, [rsp + XMM + 0x20]
    movaps xmm3, [rsp + XMM + 0x30]
    movaps xmm4, [rsp + XMM + 0x40]
    movaps xmm5, [rsp + XMM + 0x50]
    ldmxcsr [rsp + SAVED_MXCSR]
    mov rsp, rbp
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    popfq
    lea rsp, [rsp + 8]
    jmp qword ptr [rip + cdetour_entry]

    .balign 8, 0xcc
cdetour_wait:
    .skip 8
cdetour_lease:
    .skip 8
cdetour_lease_limit:
    .quad 0
cdetour_shared_data:
    .quad 0
cdetour_delay_function:
    .quad 0
cdetour_delay_interval:
    .quad 0
cdetour_entry:
    .quad 0
cdetour_handler_end:

    .balign 4
cdetour_stub_size:
    .long 8
cdetour_slots:
    .long 8

    .section .note.GNU-stack, "", @progbits
