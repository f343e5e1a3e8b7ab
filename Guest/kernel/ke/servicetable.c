// The service table. In the image it is empty; KeCompactServiceTable, which on
// Windows x64 is what puts the table into its final form, fills it at boot.

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
    KiWriteCr0(On ? KiReadCr0() | 0x10000 : KiReadCr0() & ~(ULONG_PTR)0x10000);
}

INIT_CODE void KeCompactServiceTable(void)
{
    volatile LONG *Table = KiServiceTable;

    KiSetWriteProtection(FALSE);
    for (ULONG Number = 0; Number < SERVICE_COUNT; Number++)
        KiWriteService(Table, Number, KiUnnamedServices[Number % ARRAY_COUNT(KiUnnamedServices)], 0);
    for (ULONG i = 0; i < ARRAY_COUNT(KiServices); i++)
        KiWriteService(Table, KiServices[i].Number, KiServices[i].Target, KiServices[i].Arguments);
    KiSetWriteProtection(TRUE);

    KeServiceDescriptorTable[0].Base = KiServiceTable;
    KeServiceDescriptorTable[0].Limit = SERVICE_COUNT;
    KeServiceDescriptorTable[0].Number = KI_ARGUMENT_TABLE;
    KeServiceDescriptorTableShadow[0] = KeServiceDescriptorTable[0];
}
