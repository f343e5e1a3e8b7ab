// The program's copy: see the included file.
#ifdef __x86_64__
#include "../common/checkedcall-x64.inc"
#else
#include "../common/checkedcall-x86.inc"
#endif
