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

typedef struct {
    const CHAR *Name;
    ULONG64 Value;
} SYMBOL;

// Calls back with each symbol until one call answers TRUE.
static BOOLEAN ConEachSymbol(BOOLEAN (*Visit)(const SYMBOL *Symbol, PVOID Context), PVOID Context)
{
    // KPCR and IDT are the boot processor's.
    const SYMBOL Symbols[] = {
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
        {"KeBugCheck2", (ULONG64)KeBugCheck2},
        {"KeDelayExecutionThread", (ULONG64)KeDelayExecutionThread},
        {"MmMapPage", (ULONG64)MmMapPage},
        {"MmUnmapPage", (ULONG64)MmUnmapPage},
        {"MiWritePte", (ULONG64)MiWritePte},
        {"MiExchangePte", (ULONG64)MiExchangePte},
        {"MiChangePte", (ULONG64)MiChangePte},
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

    for (ULONG i = 0; i < ARRAY_COUNT(Symbols); i++) {
        if (Visit(&Symbols[i], Context))
            return TRUE;
    }
    return FALSE;
}

static BOOLEAN ConPrintSymbol(const SYMBOL *Symbol, PVOID Context)
{
    (void)Context;
    ConPrint("  %s 0x%llx", Symbol->Name, Symbol->Value);
    return FALSE;
}

void ConSymbols(CONSOLE_COMMAND *Command)
{
    ConEachSymbol(ConPrintSymbol, NULL);
    ConAnswer(&Command->Tag, "ok");
}

static BOOLEAN ConMatchSymbol(const SYMBOL *Symbol, PVOID Context)
{
    SYMBOL *Sought = Context;
    if (!RtlStringEqual(Symbol->Name, Sought->Name))
        return FALSE;
    Sought->Value = Symbol->Value;
    return TRUE;
}

BOOLEAN ConFindSymbol(const CHAR *Name, ULONG64 *Address)
{
    SYMBOL Sought = {.Name = Name};
    BOOLEAN Found = ConEachSymbol(ConMatchSymbol, &Sought);
    *Address = Sought.Value;
    return Found;
}
