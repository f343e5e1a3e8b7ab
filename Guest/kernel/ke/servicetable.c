// The service table. In the image it is empty; KeCompactServiceTable fills it
// at boot with `offset from the table << 4 | arguments on the stack`, which is
// what Windows x64 makes of its own table, in a function of the same name.

#include "../include/ke.h"
#include "../include/nt.h"
#include "../include/po.h"

volatile ULONG64 KeSystemCalls; // made so far, Zw calls included
KSERVICE_TABLE_DESCRIPTOR KeServiceDescriptorTable[2];
KSERVICE_TABLE_DESCRIPTOR KeServiceDescriptorTableShadow[2];

#define NOT_IMPLEMENTED_BODY(n) \
    NOINLINE NTSTATUS NtNotImplemented##n(void) \
    { \
        __asm__ volatile("" : : "i"(n)); \
        return (NTSTATUS)(STATUS_NOT_IMPLEMENTED); \
    }
NOT_IMPLEMENTED_BODY(0)
NOT_IMPLEMENTED_BODY(1)
NOT_IMPLEMENTED_BODY(2)
NOT_IMPLEMENTED_BODY(3)
NOT_IMPLEMENTED_BODY(4)
NOT_IMPLEMENTED_BODY(5)
NOT_IMPLEMENTED_BODY(6)
NOT_IMPLEMENTED_BODY(7)

typedef struct {
    ULONG Number, Arguments;
    PVOID Target;
} KI_SERVICE;

static const KI_SERVICE KiServices[] = {
#define SERVICE(number, name, arguments, target) {number, arguments, (PVOID)target},
#include "../../common/services.inc"
#undef SERVICE
};

static PVOID const KiUnnamedServices[] = {
    NtNotImplemented0, NtNotImplemented1, NtNotImplemented2, NtNotImplemented3,
    NtNotImplemented4, NtNotImplemented5, NtNotImplemented6, NtNotImplemented7,
};

static INIT_CODE void KiSetWriteProtection(BOOLEAN On)
{
    ULONG64 Value;
    __asm__ volatile("movq %%cr0, %0" : "=r"(Value));
    Value = On ? Value | 0x10000 : Value & ~0x10000ull;
    __asm__ volatile("movq %0, %%cr0" : : "r"(Value) : "memory");
}

INIT_CODE void KeCompactServiceTable(void)
{
    volatile LONG *Table = KiServiceTable;

    KiSetWriteProtection(FALSE);
    for (ULONG Number = 0; Number < SERVICE_COUNT; Number++) {
        LONG_PTR Offset = (ULONG_PTR)KiUnnamedServices[Number % ARRAY_COUNT(KiUnnamedServices)] -
                          (ULONG_PTR)Table;
        Table[Number] = (LONG)(Offset << 4);
    }
    for (ULONG i = 0; i < ARRAY_COUNT(KiServices); i++) {
        const KI_SERVICE *Service = &KiServices[i];
        LONG_PTR Offset = (ULONG_PTR)Service->Target - (ULONG_PTR)Table;
        // The first four arguments are in registers.
        ULONG OnStack = Service->Arguments > 4 ? Service->Arguments - 4 : 0;
        Table[Service->Number] = (LONG)(Offset << 4 | OnStack);
    }
    KiSetWriteProtection(TRUE);

    KeServiceDescriptorTable[0].Base = KiServiceTable;
    KeServiceDescriptorTable[0].Limit = SERVICE_COUNT;
    KeServiceDescriptorTableShadow[0] = KeServiceDescriptorTable[0];
}
