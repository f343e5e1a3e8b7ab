// The bundled ring-3 program: takes commands from the kernel's console and
// carries them out through ntdll, as any program would.

#include "../common/command.h"

typedef int32_t NTSTATUS;

// ntdll's exports are undecorated, on x86 too, and so are the names by which the
// linker knows them.
#ifdef __x86_64__
#define IMPORTED(name)
#else
#define IMPORTED(name) __asm__(#name)
#endif

__declspec(dllimport) NTSTATUS NtWaitForCommand(USER_COMMAND *command, const uint64_t *result)
    IMPORTED(NtWaitForCommand);
__declspec(dllimport) NTSTATUS NtSetSystemPowerState(uint32_t action, uint32_t state, uint32_t flags)
    IMPORTED(NtSetSystemPowerState);
__declspec(dllimport) NTSTATUS NtNullSyscall(void) IMPORTED(NtNullSyscall);
__declspec(dllimport) NTSTATUS NtTerminateThread(void *thread, NTSTATUS status) IMPORTED(NtTerminateThread);

// common/checkedcall-*.inc
uint64_t CheckedCall(void *function, uintptr_t a, uintptr_t b, uintptr_t c);

#ifndef __x86_64__
// arch/x86/interrupt.S
NTSTATUS SetSystemPowerStateByInterrupt(uint32_t action, uint32_t state, uint32_t flags);
#endif

static uint64_t Execute(const USER_COMMAND *command)
{
    uint64_t calls = 0;

    switch (command->kind) {
    case USER_COMMAND_POWER:
        return CheckedCall((void *)NtSetSystemPowerState,
                           WITH_UNDEFINED_UPPER_HALF(command->arguments[0]),
                           WITH_UNDEFINED_UPPER_HALF(command->arguments[1]),
                           WITH_UNDEFINED_UPPER_HALF(command->arguments[2]));
#ifndef __x86_64__
    case USER_COMMAND_POWER_INTERRUPT:
        return CheckedCall((void *)SetSystemPowerStateByInterrupt, (uint32_t)command->arguments[0],
                           (uint32_t)command->arguments[1], (uint32_t)command->arguments[2]);
#endif
    case USER_COMMAND_LOOP:
        while (calls < command->arguments[0] && NtNullSyscall() == 0)
            calls++;
        return calls;
    default:
        return 0;
    }
}

// The entry point of every thread. The argument is the PEB, as Windows passes it.
void ProgramEntry(void *peb)
{
    USER_COMMAND command = {0};
    uint64_t result = 0;
    (void)peb;

    while (NtWaitForCommand(&command, &result) >= 0)
        result = Execute(&command);
    NtTerminateThread(0, 0);
}
