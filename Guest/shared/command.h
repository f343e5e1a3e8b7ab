// What the private service NtWaitForCommand gives to the bundled program.

#ifndef VIGIL_COMMAND_H
#define VIGIL_COMMAND_H

#include <stdint.h>

// Kinds of command.
#define USER_COMMAND_POWER 1 // arguments: action, state, flags
#define USER_COMMAND_LOOP 2  // arguments: how many system calls to make

typedef struct {
    uint64_t kind;
    uint64_t arguments[3];
} USER_COMMAND;

#endif
