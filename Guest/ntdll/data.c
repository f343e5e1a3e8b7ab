// ntdll's own data, so that its image has sections of each kind, and the
// version resource's stand-in that tools look for first.

const char NtdllVersion[] = "10.0.19041.1 (bundled guest)";
int LdrpProcessInitialized = 1;
