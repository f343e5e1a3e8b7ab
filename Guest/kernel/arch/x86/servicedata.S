// Room for the service table and the sizes of its functions' arguments: read-only
// data, out of reach of the C compiler's idea that zeroes stay zeroes.

#include "include/offsets.h"

    .section .rdata, "dr"
    .balign 64
    .globl _KiServiceTable
_KiServiceTable:
    .skip 4 * SERVICE_COUNT
    .globl _KiArgumentTable
_KiArgumentTable:
    .skip SERVICE_COUNT
