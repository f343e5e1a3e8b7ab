// Which Windows each architecture's build is in the shape of.

#ifndef VIGIL_BUILD_H
#define VIGIL_BUILD_H

#ifdef __x86_64__
#define NT_64 1
#define NT_BUILD 19045
#define NT_MAJOR_VERSION 10
#define NT_MINOR_VERSION 0
#define NT_MACHINE 0x8664
#define NTDLL_VERSION "10.0.19041.1"
#else
#define NT_64 0
#define NT_BUILD 7601
#define NT_MAJOR_VERSION 6
#define NT_MINOR_VERSION 1
#define NT_MACHINE 0x014C
#define NTDLL_VERSION "6.1.7601.17514"
#endif

// As on Windows, the kernel with physical address extension has another name.
#ifdef VIGIL_PAE
#define NT_KERNEL_NAME "ntkrnlpa.exe"
#else
#define NT_KERNEL_NAME "ntoskrnl.exe"
#endif

#endif
