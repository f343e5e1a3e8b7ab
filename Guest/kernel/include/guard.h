// The check that nobody has changed what nobody may change.

#ifndef VIGIL_GUARD_H
#define VIGIL_GUARD_H

#include "ntdef.h"

void KiGuardStart(void);             // takes the values to compare with
void KiGuardSwitch(BOOLEAN On);
void KiGuardCheck(void);             // once, if it is on
extern volatile ULONG64 KiGuardChecks; // made so far

#endif
