// A small printf: %s %c %d %u %x with `ll`, width and zero padding.

#include "../include/rtl.h"

typedef struct {
    CHAR *To;
    SIZE_T Capacity, Length;
} SINK;

static void Put(SINK *Sink, CHAR Character)
{
    if (Sink->Length + 1 < Sink->Capacity)
        Sink->To[Sink->Length++] = Character;
}

static void PutNumber(SINK *Sink, ULONG64 Value, ULONG Base, ULONG Width, CHAR Pad)
{
    CHAR Digits[24];
    ULONG Count = 0;
    do {
        Digits[Count++] = "0123456789abcdef"[Value % Base];
        Value /= Base;
    } while (Value);
    for (ULONG i = Count; i < Width; i++)
        Put(Sink, Pad);
    while (Count)
        Put(Sink, Digits[--Count]);
}

static void PutText(SINK *Sink, const CHAR *Text, ULONG Width)
{
    ULONG Count = 0;
    for (; *Text; Text++, Count++)
        Put(Sink, *Text);
    for (; Count < Width; Count++)
        Put(Sink, ' ');
}

SIZE_T RtlFormatV(CHAR *To, SIZE_T Capacity, const CHAR *Format, va_list Arguments)
{
    SINK Sink = {To, Capacity, 0};

    for (; *Format; Format++) {
        if (*Format != '%') {
            Put(&Sink, *Format);
            continue;
        }
        CHAR Pad = ' ';
        ULONG Width = 0;
        BOOLEAN Long = FALSE;
        Format++;
        if (*Format == '0')
            Pad = *Format++;
        for (; *Format >= '0' && *Format <= '9'; Format++)
            Width = Width * 10 + (ULONG)(*Format - '0');
        for (; *Format == 'l'; Format++)
            Long = TRUE;
        switch (*Format) {
        case 's':
            PutText(&Sink, va_arg(Arguments, const CHAR *), Width);
            break;
        case 'c':
            Put(&Sink, (CHAR)va_arg(Arguments, int));
            break;
        case 'd': {
            LONGLONG Value = Long ? va_arg(Arguments, LONGLONG) : va_arg(Arguments, LONG);
            if (Value < 0)
                Put(&Sink, '-');
            PutNumber(&Sink, Value < 0 ? 0 - (ULONG64)Value : (ULONG64)Value, 10, Width, Pad);
            break;
        }
        case 'u':
        case 'x': {
            ULONG64 Value = Long ? va_arg(Arguments, ULONG64) : va_arg(Arguments, ULONG);
            PutNumber(&Sink, Value, *Format == 'u' ? 10 : 16, Width, Pad);
            break;
        }
        case 0:
            Format--;
            break;
        default:
            Put(&Sink, *Format);
        }
    }
    if (Capacity)
        To[Sink.Length] = 0;
    return Sink.Length;
}

SIZE_T RtlFormat(CHAR *To, SIZE_T Capacity, const CHAR *Format, ...)
{
    va_list Arguments;
    va_start(Arguments, Format);
    SIZE_T Length = RtlFormatV(To, Capacity, Format, Arguments);
    va_end(Arguments);
    return Length;
}
