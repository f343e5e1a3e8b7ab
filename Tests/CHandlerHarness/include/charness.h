// Runs the detour's handler in this process, with every register given, and takes every register down
// where the handler jumps to the intercepted function's entry.
#pragma once
#include <stdint.h>

// A processor's state, in 64-bit words: rax, rcx, rdx, rbx, rbp, rsi, rdi, r8 to r15, RFLAGS, rsp, MXCSR,
// xmm0 to xmm15 (two words each).
enum { HARNESS_FLAGS = 15, HARNESS_RSP = 16, HARNESS_MXCSR = 17, HARNESS_XMM = 18, HARNESS_WORDS = 50 };

/// One call of the function that stands in for KeDelayExecutionThread, as it arrived.
struct harness_delay_call {
    uint64_t rsp, rcx, rdx, r8, flags;
};

typedef void (*harness_on_delay)(void *context, const struct harness_delay_call *call);

/// Loads `in`, jumps to `target`, and returns when `harness_entry()` is reached, with the state there in `out`.
void harness_run(const uint64_t *in, uint64_t *out, const void *target, harness_on_delay on_delay, void *context);

/// The address that stands for the intercepted function's entry.
uint64_t harness_entry(void);

/// The address of a function in the Microsoft x64 convention that calls `on_delay`, and destroys everything
/// that its convention lets it destroy.
uint64_t harness_delay_function(void);

/// Enters an interrupt's handler from this process's code, as a processor does without a change of privilege level:
/// with `place` in RSI and `value` in RDX. The handler returns to `harness_interrupt_end()`. Any number at once.
void harness_interrupt(const void *gate, uint64_t *place, uint64_t value);
uint64_t harness_interrupt_end(void);

/// This process's selectors.
uint64_t harness_code_segment(void);
uint64_t harness_stack_segment(void);
