// The program's copy: see the included file.
#include "../shared/checkedcall.inc"
