// KUSER_SHARED_DATA, the fields that this kernel keeps: ntddk.h.

#ifndef VIGIL_SHAREDDATA_H
#define VIGIL_SHAREDDATA_H

#include "ntdef.h"
#include "offsets.h"

// A 96-bit time that is read without a lock: the writer sets High2, Low,
// High1; a reader takes High1, Low, and repeats until High2 is the same.
typedef struct {
    volatile ULONG LowPart;
    volatile LONG High1Time;
    volatile LONG High2Time;
} KSYSTEM_TIME;

typedef struct {
    ULONG TickCountLowDeprecated, TickCountMultiplier; // 0x000
    KSYSTEM_TIME InterruptTime;                        // 0x008, 100 ns
    KSYSTEM_TIME SystemTime;                           // 0x014, 100 ns since 1601
    KSYSTEM_TIME TimeZoneBias;                         // 0x020
    USHORT ImageNumberLow, ImageNumberHigh;            // 0x02C
    WCHAR NtSystemRoot[260];                           // 0x030
    ULONG Reserved238[10];
    ULONG NtBuildNumber;                               // 0x260
    ULONG NtProductType;                               // 0x264
    UCHAR ProductTypeIsValid, Reserved269[3];
    ULONG NtMajorVersion, NtMinorVersion;              // 0x26C
    UCHAR Reserved274[0x300 - 0x274];
    ULONG SystemCallStub, SystemCallReturn;            // 0x300, x86: ntdll's two
    ULONG SystemCall;                                  // 0x308, x64; 0: use `syscall`
    UCHAR Reserved30C[0x320 - 0x30C];
    KSYSTEM_TIME TickCount;                            // 0x320
    UCHAR Reserved32C[0x3B0 - 0x32C];
    ULONG64 InterruptTimeBias;                         // 0x3B0
} KUSER_SHARED_DATA;
FIELD_AT(KUSER_SHARED_DATA, InterruptTime, 0x008);
FIELD_AT(KUSER_SHARED_DATA, SystemTime, 0x014);
FIELD_AT(KUSER_SHARED_DATA, NtBuildNumber, 0x260);
FIELD_AT(KUSER_SHARED_DATA, NtMajorVersion, 0x26C);
FIELD_AT(KUSER_SHARED_DATA, NtMinorVersion, 0x270);
FIELD_AT(KUSER_SHARED_DATA, SystemCallStub, 0x300);
FIELD_AT(KUSER_SHARED_DATA, SystemCall, 0x308);
FIELD_AT(KUSER_SHARED_DATA, TickCount, 0x320);
FIELD_AT(KUSER_SHARED_DATA, InterruptTimeBias, 0x3B0);

#define MM_SHARED_USER_DATA_VA 0x7FFE0000
#define SharedUserData ((KUSER_SHARED_DATA *)KI_USER_SHARED_DATA)

#endif
