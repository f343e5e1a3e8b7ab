// Starting the bundled program: an address space, two images, a PEB, threads.

#include "../include/mm.h"
#include "../include/ps.h"
#include "../include/rtl.h"
#include "../../common/pe.h"

PSP_USER_LAYOUT PspUserLayout;

#define MODULE_NTDLL 1
#define MODULE_PROGRAM 2

const void *PspModule(ULONG Index, SIZE_T *Size)
{
    *Size = (SIZE_T)MiBootBlock->modules[Index].size;
    return MmPhysicalToVirtual(MiBootBlock->modules[Index].base);
}

// As on Windows, where an image lies in user memory is drawn once for each
// boot and is the same in every process; on 64 KiB boundaries.
void PspChooseUserLayout(void)
{
    SIZE_T Size;
    const PE_HEADERS *Ntdll = PeHeaders(PspModule(MODULE_NTDLL, &Size));
    const PE_HEADERS *Program = PeHeaders(PspModule(MODULE_PROGRAM, &Size));

    if (!Ntdll || !Program)
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 6, 0, 0, 0);
    PspUserLayout.NtdllBase = PSP_NTDLL_BASE + (ULONG_PTR)(RtlRandom() % PSP_NTDLL_PLACES) * 0x10000;
    PspUserLayout.NtdllSize = PAGE_ALIGN_UP(Ntdll->imageSize);
    PspUserLayout.ProgramBase = PSP_PROGRAM_BASE + (ULONG_PTR)(RtlRandom() % PSP_PROGRAM_PLACES) * 0x10000;
    PspUserLayout.ProgramSize = PAGE_ALIGN_UP(Program->imageSize);
    PspPublishSystemCall();
}

PEPROCESS PspStartProgram(const CHAR *Name, PTOKEN Token, const ULONG *Roles, ULONG Threads)
{
    SIZE_T NtdllSize, ProgramSize;
    const void *Ntdll = PspModule(MODULE_NTDLL, &NtdllSize);
    const void *Program = PspModule(MODULE_PROGRAM, &ProgramSize);
    ULONG_PTR Root = MmCreateAddressSpace();
    PEPROCESS Process = PspCreateProcess(Name, Token, Root);

    NTSTATUS Status = MiMapUserImage(Root, Ntdll, NtdllSize, PspUserLayout.NtdllBase);
    if (NT_SUCCESS(Status))
        Status = MiMapUserImage(Root, Program, ProgramSize, PspUserLayout.ProgramBase);
    if (!NT_SUCCESS(Status))
        KeBugCheckEx(PHASE0_INITIALIZATION_FAILED, 7, (ULONG_PTR)Status, 0, 0);

    Process->SectionBaseAddress = (PVOID)PspUserLayout.ProgramBase;
    Process->Peb = (PVOID)(PSP_PEB_BASE + (ULONG_PTR)(RtlRandom() % PSP_PEB_PLACES) * PSP_PEB_DISTANCE);
    Process->NextUserStack = PSP_STACKS((ULONG_PTR)Process->Peb);
    PspBuildPeb(Process, Name);

    for (ULONG i = 0; i < Threads; i++) {
        PETHREAD Thread = PspCreateUserThread(Process, Roles[i]);
        Thread->UserIp += PeHeaders(Program)->entryPoint;
        KIRQL Irql = KiAcquireDispatcherLock();
        KiReadyThread(&Thread->Tcb, FALSE);
        KiReleaseDispatcherLock(Irql);
    }
    return Process;
}
