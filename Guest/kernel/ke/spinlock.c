// Spin locks. Whoever holds one is at DISPATCH_LEVEL: no other thread comes in
// between, and interrupts, which take no such lock, still do.

#include "../include/ke.h"

KIRQL KeRaiseIrqlToDpcLevel(void)
{
    KIRQL Old = KeGetCurrentIrql();
    // From above it would be a lowering; a lock taken there could be one that
    // the code interrupted holds.
    if (Old > DISPATCH_LEVEL)
        KeBugCheckEx(IRQL_NOT_LESS_OR_EQUAL, 0, Old, 0, (ULONG_PTR)KeRaiseIrqlToDpcLevel);
    KiSetIrql(DISPATCH_LEVEL);
    return Old;
}

void KeLowerIrql(KIRQL Irql)
{
    KiSetIrql(Irql);
}

KIRQL KeAcquireSpinLockRaiseToDpc(PKSPIN_LOCK Lock)
{
    KIRQL Old = KeRaiseIrqlToDpcLevel();
    while (__atomic_exchange_n(Lock, 1, __ATOMIC_ACQUIRE)) {
        while (*Lock)
            __builtin_ia32_pause();
    }
    return Old;
}

void KeReleaseSpinLock(PKSPIN_LOCK Lock, KIRQL Irql)
{
    __atomic_store_n(Lock, 0, __ATOMIC_RELEASE);
    KiSetIrql(Irql);
}
