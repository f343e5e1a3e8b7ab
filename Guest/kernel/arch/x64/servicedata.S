// Room for the service table: read-only data, as on Windows, and so out of
// reach of the C compiler's idea that zeroes stay zeroes.

#include "include/offsets.h"

    .section .rdata, "dr"
    .balign 64
    .globl KiServiceTable
KiServiceTable:
    .skip 4 * SERVICE_COUNT
