// The program's copy: see the included file.
#include "../common/checkedcall.inc"
