// The loader's voice: COM1, polled. It speaks only when it cannot go on.

#include "loader.h"

#define COM1 0x3F8

void SerialInitialize(void)
{
    Out8(COM1 + 1, 0);    // no interrupts
    Out8(COM1 + 3, 0x80); // divisor latch
    Out8(COM1 + 0, 1);    // 115200 baud
    Out8(COM1 + 1, 0);
    Out8(COM1 + 3, 3);    // 8 bits, no parity, one stop bit
    Out8(COM1 + 2, 0xC7); // FIFO on and empty
    Out8(COM1 + 4, 0x0B); // DTR, RTS, OUT2
}

void SerialPrint(const char *text)
{
    for (; *text; text++) {
        for (int patience = 1000000; patience > 0; patience--) {
            if (In8(COM1 + 5) & 0x20)
                break;
        }
        Out8(COM1, (uint8_t)*text);
    }
}

void Fail(const char *reason)
{
    SerialPrint("loader: ");
    SerialPrint(reason);
    SerialPrint("\n");
    for (;;)
        __asm__ volatile("cli; hlt");
}
