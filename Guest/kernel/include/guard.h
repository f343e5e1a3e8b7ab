// The check that nobody has changed what nobody may change.

#ifndef VIGIL_GUARD_H
#define VIGIL_GUARD_H

#include "ntdef.h"

void KiGuardStart(void);             // takes the values to compare with
typedef enum { KiGuardOff, KiGuardAlways, KiGuardResuming } KI_GUARD_MODE;
void KiGuardSwitch(KI_GUARD_MODE Mode);
void KiGuardCheckResumed(void);      // once, unless it is off
extern volatile ULONG64 KiGuardChecks; // made so far

#endif
