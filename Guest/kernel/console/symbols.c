// The truth, for tests: where things are on this boot.

#include "../include/console.h"
#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/nt.h"
#include "../include/po.h"
#include "../include/ps.h"
#include "../include/rtl.h"
#include "../../common/pe.h"

extern UCHAR KiSystemServiceStart[], KiSystemServiceRepeat[], KiSystemServiceExit[],
    KiServiceInternal[], KiServiceLinkage[], KiPageFault[];
extern ULONG NtBuildNumber;

// The end of a section's last page; 0: there is none of that name.
static ULONG64 ConSectionEnd(const CHAR *Name)
{
    ULONG64 Base = MiBootBlock->kernelVirtualBase;
    const PE_HEADERS *Headers = PeHeaders((PVOID)Base);
    const PE_SECTION *Section = PeSections(Headers);
    for (ULONG i = 0; i < Headers->sectionCount; i++, Section++) {
        if (!memcmp(Section->name, Name, RtlStringLength(Name) + 1))
            return Base + PAGE_ALIGN_UP((ULONG64)Section->virtualAddress + Section->virtualSize);
    }
    return 0;
}

void ConSymbols(CONSOLE_COMMAND *Command)
{
    // KPCR and IDT are the boot processor's.
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
        {"TextEnd", ConSectionEnd(".text")},
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
        {"KPCR", (ULONG64)&KiProcessors[0]->Pcr},
        {"IDT", (ULONG64)KiProcessors[0]->Idt},
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
