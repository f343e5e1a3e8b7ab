// Which build this is: how the compiler optimised, and how
// NtSetSystemPowerState re-enters.

#include "../include/console.h"

#ifdef VIGIL_REENTRY_DEEP
#define REENTRY "deep"
#else
#define REENTRY "direct"
#endif

const CHAR *const ConVariant = VIGIL_VARIANT_PREFIX VIGIL_OPTIMIZATION "-" REENTRY;
