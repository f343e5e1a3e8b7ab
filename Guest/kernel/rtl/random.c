// Random numbers for the layout of user memory: xoroshiro128+ (Blackman and
// Vigna, 2018), seeded by the loader at each boot.

#include "../include/rtl.h"

static ULONG64 RtlpState[2];

void RtlSeedRandom(ULONG64 A, ULONG64 B)
{
    RtlpState[0] = A | 1;
    RtlpState[1] = B;
}

static ULONG64 Rotate(ULONG64 Value, ULONG Count)
{
    return Value << Count | Value >> (64 - Count);
}

ULONG64 RtlRandom(void)
{
    ULONG64 A = RtlpState[0], B = RtlpState[1], Result = A + B;
    B ^= A;
    RtlpState[0] = Rotate(A, 24) ^ B ^ (B << 16);
    RtlpState[1] = Rotate(B, 37);
    return Result;
}
