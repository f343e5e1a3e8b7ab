// What the private service NtWaitForCommand gives to the bundled program.

#ifndef VIGIL_COMMAND_H
#define VIGIL_COMMAND_H

#include <stdint.h>

// Kinds of command.
#define USER_COMMAND_POWER 1 // arguments: action, state, flags
#define USER_COMMAND_LOOP 2  // arguments: how many system calls to make
#define USER_COMMAND_POWER_INTERRUPT 3 // as the first, by `int 2Eh`; x86 alone

// The x64 calling convention leaves the upper half of a register that holds a
// 32-bit argument undefined; whoever reads such arguments from the registers
// must not look at it. The requests of this guest always have something there.
// On x86 an argument is 32 bits on the stack.
#ifdef __x86_64__
#define WITH_UNDEFINED_UPPER_HALF(argument) \
    ((uint32_t)(argument) | 0xBADC0DE500000000ull)
#else
#define WITH_UNDEFINED_UPPER_HALF(argument) ((uint32_t)(argument))
#endif

typedef struct {
    uint64_t kind;
    uint64_t arguments[3];
} USER_COMMAND;

#endif
