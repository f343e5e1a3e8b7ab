// The end of .text. The build makes it as large as it takes for the last page
// of .text to have room after it: see guest-builder's KernelRules.

    .section .text$zz, "xr"
    .skip VIGIL_TEXT_PADDING
