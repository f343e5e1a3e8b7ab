// The bundled ring-3 program: takes commands from the kernel's console and
// carries them out through ntdll, as any program would.

#include "../common/command.h"

typedef int32_t NTSTATUS;

__declspec(dllimport) NTSTATUS NtWaitForCommand(USER_COMMAND *command, uint64_t result);
__declspec(dllimport) NTSTATUS NtSetSystemPowerState(uint32_t action, uint32_t state, uint32_t flags);
__declspec(dllimport) NTSTATUS NtNullSyscall(void);
__declspec(dllimport) NTSTATUS NtTerminateThread(void *thread, NTSTATUS status);

// common/checkedcall.inc
uint64_t CheckedCall(void *function, uint64_t a, uint64_t b, uint64_t c);

static uint64_t Execute(const USER_COMMAND *command)
{
    uint64_t calls = 0;

    switch (command->kind) {
    case USER_COMMAND_POWER:
        return CheckedCall((void *)NtSetSystemPowerState,
                           WITH_UNDEFINED_UPPER_HALF(command->arguments[0]),
                           WITH_UNDEFINED_UPPER_HALF(command->arguments[1]),
                           WITH_UNDEFINED_UPPER_HALF(command->arguments[2]));
    case USER_COMMAND_LOOP:
        while (calls < command->arguments[0] && NtNullSyscall() == 0)
            calls++;
        return calls;
    default:
        return 0;
    }
}

// The entry point of every thread. RCX is the PEB, as Windows passes it.
void ProgramEntry(void *peb)
{
    USER_COMMAND command = {0};
    uint64_t result = 0;
    (void)peb;

    while (NtWaitForCommand(&command, result) >= 0)
        result = Execute(&command);
    NtTerminateThread(0, 0);
}
