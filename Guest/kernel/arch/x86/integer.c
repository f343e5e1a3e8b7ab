// Division of 64-bit integers, which the compiler calls by the names that
// Microsoft's has for it; all are stdcall.

#include "../../include/ntdef.h"

static ULONG64 RtlpDivide(ULONG64 Dividend, ULONG64 Divisor, ULONG64 *Remainder)
{
    ULONG High = (ULONG)(Dividend >> 32), Low = (ULONG)Dividend, Quotients[2] = {0, 0};

    if (Divisor >> 32 == 0) {
        // By digits of 32 bits: the remainder of the first is below the divisor, as the
        // instruction demands of its upper half.
        ULONG Rest;
        __asm__("divl %4" : "=a"(Quotients[1]), "=d"(Rest) : "a"(High), "d"(0), "r"((ULONG)Divisor));
        __asm__("divl %4" : "=a"(Quotients[0]), "=d"(Rest) : "a"(Low), "d"(Rest), "r"((ULONG)Divisor));
        *Remainder = Rest;
    } else {
        // The quotient has no more bits than the divisor's upper half has zeroes before it.
        for (ULONG Bit = (ULONG)__builtin_clz((ULONG)(Divisor >> 32)) + 1; Bit-- > 0;) {
            if (Dividend >> Bit >= Divisor) {
                Dividend -= Divisor << Bit;
                Quotients[0] |= 1u << Bit;
            }
        }
        *Remainder = Dividend;
    }
    return (ULONG64)Quotients[1] << 32 | Quotients[0];
}

ULONG64 RtlDivideUnsigned(ULONG64 Dividend, ULONG64 Divisor) __asm__("__aulldiv");
ULONG64 RtlRemainderUnsigned(ULONG64 Dividend, ULONG64 Divisor) __asm__("__aullrem");
LONGLONG RtlDivideSigned(LONGLONG Dividend, LONGLONG Divisor) __asm__("__alldiv");
LONGLONG RtlRemainderSigned(LONGLONG Dividend, LONGLONG Divisor) __asm__("__allrem");

ULONG64 RtlDivideUnsigned(ULONG64 Dividend, ULONG64 Divisor)
{
    ULONG64 Remainder;
    return RtlpDivide(Dividend, Divisor, &Remainder);
}

ULONG64 RtlRemainderUnsigned(ULONG64 Dividend, ULONG64 Divisor)
{
    ULONG64 Remainder;
    RtlpDivide(Dividend, Divisor, &Remainder);
    return Remainder;
}

static ULONG64 RtlpMagnitude(LONGLONG Value)
{
    return Value < 0 ? 0 - (ULONG64)Value : (ULONG64)Value;
}

LONGLONG RtlDivideSigned(LONGLONG Dividend, LONGLONG Divisor)
{
    ULONG64 Remainder;
    ULONG64 Quotient = RtlpDivide(RtlpMagnitude(Dividend), RtlpMagnitude(Divisor), &Remainder);
    return (LONGLONG)((Dividend < 0) != (Divisor < 0) ? 0 - Quotient : Quotient);
}

LONGLONG RtlRemainderSigned(LONGLONG Dividend, LONGLONG Divisor)
{
    ULONG64 Remainder;
    RtlpDivide(RtlpMagnitude(Dividend), RtlpMagnitude(Divisor), &Remainder);
    return (LONGLONG)(Dividend < 0 ? 0 - Remainder : Remainder);
}
