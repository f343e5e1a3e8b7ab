// The console's line discipline: lines in, split into words; lines out, whole.

#include "../include/console.h"
#include "../include/hal.h"
#include "../include/ps.h"
#include "../include/rtl.h"
#include "../../common/build.h"

// One line at a time on the wire, whichever thread it comes from.
static KEVENT ConLineFree;

static void ConWriteLine(CHAR *Line, SIZE_T Length)
{
    Line[Length] = '\n';
    KeWaitForSingleObject(&ConLineFree, 0, KernelMode, FALSE, NULL);
    HalSerialWrite(Line, Length + 1);
    KeSetEvent(&ConLineFree, 0, FALSE);
}

void ConPrint(const CHAR *Format, ...)
{
    CHAR Line[CONSOLE_LINE_MAXIMUM];
    va_list Arguments;
    va_start(Arguments, Format);
    SIZE_T Length = RtlFormatV(Line, sizeof Line - 1, Format, Arguments);
    va_end(Arguments);
    ConWriteLine(Line, Length);
}

void ConAnswer(const CONSOLE_TAG *Tag, const CHAR *Format, ...)
{
    CHAR Line[CONSOLE_LINE_MAXIMUM];
    SIZE_T Prefix = RtlFormat(Line, sizeof Line, "%s", Tag->Text);
    va_list Arguments;
    va_start(Arguments, Format);
    SIZE_T Length = RtlFormatV(Line + Prefix, sizeof Line - 1 - Prefix, Format, Arguments);
    va_end(Arguments);
    ConWriteLine(Line, Prefix + Length);
}

static BOOLEAN ConIsTag(const CHAR *Word)
{
    SIZE_T Length = RtlStringLength(Word);
    if (Word[0] != '#' || Length < 2 || Length + 2 > CONSOLE_TAG_MAXIMUM)
        return FALSE;
    for (SIZE_T i = 1; i < Length; i++) {
        if (Word[i] < '0' || Word[i] > '9')
            return FALSE;
    }
    return TRUE;
}

static void ConExecute(CHAR *Line)
{
    CONSOLE_COMMAND Command = {0};
    CHAR *At = Line;
    BOOLEAN Tagged = FALSE, TooMany = FALSE;

    for (;;) {
        while (*At == ' ')
            At++;
        if (!*At)
            break;
        CHAR *Word = At;
        while (*At && *At != ' ')
            At++;
        if (*At)
            *At++ = 0;
        if (!Tagged && Command.Count == 0 && ConIsTag(Word)) {
            RtlFormat(Command.Tag.Text, sizeof Command.Tag.Text, "%s ", Word);
            Tagged = TRUE;
        } else if (Command.Count < ARRAY_COUNT(Command.Words)) {
            Command.Words[Command.Count++] = Word;
        } else {
            TooMany = TRUE;
        }
    }
    if (TooMany)
        ConAnswer(&Command.Tag, "error unknown command");
    else if (Command.Count || Tagged)
        ConDispatch(&Command); // an empty line is no command and has no answer
}

static void ConThread(PVOID Context)
{
    static CHAR Line[CONSOLE_LINE_MAXIMUM];
    static const CONSOLE_TAG NoTag;
    SIZE_T Length = 0;
    BOOLEAN Overlong = FALSE;
    (void)Context;

    ConPrint("Vigil guest ready variant=%s build=%u", ConVariant, NT_BUILD);
    for (;;) {
        LONG Byte = HalSerialRead();
        if (Byte < 0) {
            KeWaitForSingleObject(&HalSerialReady, 0, KernelMode, FALSE, NULL);
        } else if (Byte == '\n' || Byte == '\r') {
            Line[Length] = 0;
            if (Overlong)
                ConAnswer(&NoTag, "error line too long");
            else
                ConExecute(Line);
            Length = 0;
            Overlong = FALSE;
        } else if (Length + 1 >= sizeof Line) {
            Overlong = TRUE;
        } else {
            // What is not printable cannot be part of a command.
            Line[Length++] = Byte >= ' ' && Byte < 0x7F ? (CHAR)Byte : '?';
        }
    }
}

void ConStart(void)
{
    KeInitializeEvent(&ConLineFree, SynchronizationEvent, TRUE);
    HalpEnableLine(HAL_SERIAL_LINE);
    PspCreateThread(PsInitialSystemProcess, "console", ConThread, NULL);
}
