// Memory and strings. The compiler calls the first three by itself.

#include "../include/rtl.h"

void *__cdecl memset(void *To, int Value, size_t Size)
{
    void *Start = To;
    __asm__ volatile("rep stosb" : "+D"(To), "+c"(Size) : "a"(Value) : "memory");
    return Start;
}

void *__cdecl memcpy(void *To, const void *From, size_t Size)
{
    void *Start = To;
    __asm__ volatile("rep movsb" : "+D"(To), "+S"(From), "+c"(Size) : : "memory");
    return Start;
}

int __cdecl memcmp(const void *A, const void *B, size_t Size)
{
    const volatile UCHAR *First = A, *Second = B;
    for (size_t i = 0; i < Size; i++) {
        if (First[i] != Second[i])
            return First[i] < Second[i] ? -1 : 1;
    }
    return 0;
}

SIZE_T RtlStringLength(const CHAR *Text)
{
    SIZE_T Length = 0;
    while (((const volatile CHAR *)Text)[Length])
        Length++;
    return Length;
}

BOOLEAN RtlStringEqual(const CHAR *A, const CHAR *B)
{
    while (*A && *A == *B)
        A++, B++;
    return *A == *B;
}

void RtlStringCopy(CHAR *To, SIZE_T Capacity, const CHAR *From)
{
    SIZE_T i = 0;
    for (; From[i] && i + 1 < Capacity; i++)
        To[i] = From[i];
    To[i] = 0;
}

BOOLEAN RtlParseNumber(const CHAR *Text, ULONG64 *Value)
{
    ULONG64 Base = 10, Result = 0;
    if (Text[0] == '0' && (Text[1] == 'x' || Text[1] == 'X')) {
        Base = 16;
        Text += 2;
    }
    if (!*Text)
        return FALSE;
    for (; *Text; Text++) {
        ULONG64 Digit;
        if (*Text >= '0' && *Text <= '9')
            Digit = (ULONG64)(*Text - '0');
        else if (*Text >= 'a' && *Text <= 'f')
            Digit = (ULONG64)(*Text - 'a') + 10;
        else if (*Text >= 'A' && *Text <= 'F')
            Digit = (ULONG64)(*Text - 'A') + 10;
        else
            return FALSE;
        if (Digit >= Base || Result > (~0ull - Digit) / Base)
            return FALSE;
        Result = Result * Base + Digit;
    }
    *Value = Result;
    return TRUE;
}
