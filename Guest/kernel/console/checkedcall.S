// The kernel's copy: see the included file.
#include "../../common/checkedcall.inc"
