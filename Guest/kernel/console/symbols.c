// The truth, for tests: where things are on this boot.

#include "../include/console.h"
#include "../include/mm.h"
#include "../include/mp.h"
#include "../include/nt.h"
#include "../include/po.h"
#include "../include/ps.h"
#include "../include/rtl.h"
#include "../../common/pe.h"

extern ULONG NtBuildNumber;

// The end of a section's last page; 0: there is none of that name.
static ULONG_PTR ConSectionEnd(const CHAR *Name)
{
    ULONG_PTR Base = MiBootBlock->kernelVirtualBase;
    const PE_HEADERS *Headers = PeHeaders((PVOID)Base);
    const PE_SECTION *Section = PeSections(Headers);
    for (ULONG i = 0; i < Headers->sectionCount; i++, Section++) {
        if (!memcmp(Section->name, Name, RtlStringLength(Name) + 1))
            return Base + PAGE_ALIGN_UP((ULONG_PTR)Section->virtualAddress + Section->virtualSize);
    }
    return 0;
}

typedef struct {
    const CHAR *Name;
    ULONG_PTR Value;
} SYMBOL;

// Calls back with each symbol until one call answers TRUE.
static BOOLEAN ConEachSymbol(BOOLEAN (*Visit)(const SYMBOL *Symbol, PVOID Context), PVOID Context)
{
    // KPCR and IDT are the boot processor's.
    const SYMBOL Symbols[] = {
        {"ImageBase", (ULONG_PTR)MiBootBlock->kernelVirtualBase},
        {"ImageSize", (ULONG_PTR)MiBootBlock->kernelImageSize},
        {"ImagePhysicalBase", (ULONG_PTR)MiBootBlock->kernelPhysicalBase},
        {"DirectoryTableBase", MiSystemRoot()},
        {"PteBase", MM_PTE_BASE},
        {"NtSetSystemPowerState", (ULONG_PTR)NtSetSystemPowerState},
        {"ZwSetSystemPowerState", (ULONG_PTR)ZwSetSystemPowerState},
        {"TextEnd", ConSectionEnd(".text")},
        KI_ARCHITECTURE_SYMBOLS
        {"KiServiceTable", (ULONG_PTR)KiServiceTable},
        {"KeServiceDescriptorTable", (ULONG_PTR)KeServiceDescriptorTable},
        {"KeServiceDescriptorTableShadow", (ULONG_PTR)KeServiceDescriptorTableShadow},
        {"KiPageFault", (ULONG_PTR)KiPageFault},
        {"KeBugCheckEx", (ULONG_PTR)KeBugCheckEx},
        {"KeBugCheck2", (ULONG_PTR)KeBugCheck2},
        {"KeDelayExecutionThread", (ULONG_PTR)KeDelayExecutionThread},
        {"MmMapPage", (ULONG_PTR)MmMapPage},
        {"MmUnmapPage", (ULONG_PTR)MmUnmapPage},
        {"MiWritePte", (ULONG_PTR)MiWritePte},
        {"MiExchangePte", (ULONG_PTR)MiExchangePte},
        {"MiChangePte", (ULONG_PTR)MiChangePte},
        {"NtBuildNumber", (ULONG_PTR)&NtBuildNumber},
        {"KPCR", (ULONG_PTR)&KiProcessors[0]->Pcr},
        {"IDT", (ULONG_PTR)KiProcessors[0]->Idt},
        {"PsInitialSystemProcess", (ULONG_PTR)PsInitialSystemProcess},
        {"PsActiveProcessHead", (ULONG_PTR)&PsActiveProcessHead},
        {"PsLoadedModuleList", (ULONG_PTR)&PsLoadedModuleList},
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
    ConPrint("  %s 0x%llx", Symbol->Name, (ULONG64)Symbol->Value);
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

BOOLEAN ConFindSymbol(const CHAR *Name, ULONG_PTR *Address)
{
    SYMBOL Sought = {.Name = Name};
    BOOLEAN Found = ConEachSymbol(ConMatchSymbol, &Sought);
    *Address = Sought.Value;
    return Found;
}
