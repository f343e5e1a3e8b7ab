// The run-time library: strings, numbers, formatting, randomness.

#ifndef VIGIL_RTL_H
#define VIGIL_RTL_H

#include <stdarg.h>

#include "ntdef.h"

// What the compiler calls by itself is __cdecl; all else is stdcall on x86.
void *__cdecl memset(void *To, int Value, size_t Size);
void *__cdecl memcpy(void *To, const void *From, size_t Size);
int __cdecl memcmp(const void *A, const void *B, size_t Size);
#define RtlZeroMemory(To, Size) memset((To), 0, (Size))
#define RtlCopyMemory(To, From, Size) memcpy((To), (From), (Size))

SIZE_T RtlStringLength(const CHAR *Text);
BOOLEAN RtlStringEqual(const CHAR *A, const CHAR *B);
void RtlStringCopy(CHAR *To, SIZE_T Capacity, const CHAR *From);
BOOLEAN RtlParseNumber(const CHAR *Text, ULONG64 *Value); // decimal, or 0x…

// %s %c %d %u %x %llx %llu %p, with width and zero padding; always terminated.
#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))
SIZE_T RtlFormatV(CHAR *To, SIZE_T Capacity, const CHAR *Format, va_list Arguments);
SIZE_T RtlFormat(CHAR *To, SIZE_T Capacity, const CHAR *Format, ...) PRINTF_LIKE(3, 4);

void RtlSeedRandom(ULONG64 A, ULONG64 B);
ULONG64 RtlRandom(void);

#endif
