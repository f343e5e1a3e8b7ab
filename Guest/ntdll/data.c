// ntdll's own data, so that its image has sections of each kind, and the
// version resource's stand-in that tools look for first.

#include "../common/build.h"

const char NtdllVersion[] = NTDLL_VERSION " (bundled guest)";
int LdrpProcessInitialized = 1;
