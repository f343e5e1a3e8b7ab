// The truth, for tests: where things are on this boot.

#include "../include/console.h"
#include "../include/mm.h"
#include "../include/nt.h"
#include "../include/po.h"
#include "../include/ps.h"

extern UCHAR KiSystemServiceStart[], KiSystemServiceRepeat[], KiSystemServiceExit[],
    KiServiceInternal[], KiServiceLinkage[], KiPageFault[];
extern ULONG NtBuildNumber;

void ConSymbols(CONSOLE_COMMAND *Command)
{
    const struct {
        const CHAR *Name;
        ULONG64 Value;
    } Symbols[] = {
        {"ImageBase", MiBootBlock->kernelVirtualBase},
        {"ImageSize", MiBootBlock->kernelImageSize},
        {"ImagePhysicalBase", MiBootBlock->kernelPhysicalBase},
        {"DirectoryTableBase", MiSystemRoot()},
        {"PteBase", 0xFFFF000000000000ull | MiBootBlock->selfMapIndex << 39},
        {"NtSetSystemPowerState", (ULONG64)NtSetSystemPowerState},
        {"ZwSetSystemPowerState", (ULONG64)ZwSetSystemPowerState},
        {"KiSystemCall64", (ULONG64)KiSystemCall64},
        {"KiSystemServiceStart", (ULONG64)KiSystemServiceStart},
        {"KiSystemServiceRepeat", (ULONG64)KiSystemServiceRepeat},
        {"KiSystemServiceCopyEnd", (ULONG64)KiSystemServiceCopyEnd},
        {"KiSystemServiceExit", (ULONG64)KiSystemServiceExit},
        {"KiServiceInternal", (ULONG64)KiServiceInternal},
        {"KiServiceLinkage", (ULONG64)KiServiceLinkage},
        {"KiServiceTable", (ULONG64)KiServiceTable},
        {"KeServiceDescriptorTable", (ULONG64)KeServiceDescriptorTable},
        {"KeServiceDescriptorTableShadow", (ULONG64)KeServiceDescriptorTableShadow},
        {"KiPageFault", (ULONG64)KiPageFault},
        {"KeBugCheckEx", (ULONG64)KeBugCheckEx},
        {"KeDelayExecutionThread", (ULONG64)KeDelayExecutionThread},
        {"NtBuildNumber", (ULONG64)&NtBuildNumber},
        {"KPCR", (ULONG64)CONTAINING_RECORD(KeGetCurrentPrcb(), KPCR, Prcb)},
        {"IDT", (ULONG64)CONTAINING_RECORD(KeGetCurrentPrcb(), KPCR, Prcb)->IdtBase},
        {"PsInitialSystemProcess", (ULONG64)PsInitialSystemProcess},
        {"PsActiveProcessHead", (ULONG64)&PsActiveProcessHead},
        {"PsLoadedModuleList", (ULONG64)&PsLoadedModuleList},
        {"NtdllBase", PspUserLayout.NtdllBase},
        {"NtdllSize", PspUserLayout.NtdllSize},
        {"ProgramBase", PspUserLayout.ProgramBase},
    };

    for (ULONG i = 0; i < ARRAY_COUNT(Symbols); i++)
        ConPrint("  %s 0x%llx", Symbols[i].Name, Symbols[i].Value);
    ConAnswer(&Command->Tag, "ok");
}
