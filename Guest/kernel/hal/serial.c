// The serial line (16550 UART): received bytes by interrupt into a ring, sent
// bytes by polling, never waiting for ever.

#include "../include/hal.h"
#include "../include/mp.h"

#define RING_SIZE 1024

static USHORT HalpPort;
static UCHAR HalpRing[RING_SIZE];
static volatile ULONG HalpHead, HalpTail; // written by the interrupt; by the reader
KEVENT HalSerialReady;

void HalpResetSerial(void)
{
    USHORT Port = HalpPort;
    WRITE_PORT_UCHAR(Port + 1, 0);    // no interrupts
    WRITE_PORT_UCHAR(Port + 3, 0x80); // divisor latch
    WRITE_PORT_UCHAR(Port + 0, 1);    // 115200 baud
    WRITE_PORT_UCHAR(Port + 1, 0);
    WRITE_PORT_UCHAR(Port + 3, 3);    // 8 bits, no parity, one stop bit
    WRITE_PORT_UCHAR(Port + 2, 0x07); // FIFO on and empty, interrupt at 1 byte
    WRITE_PORT_UCHAR(Port + 4, 0x0B); // DTR, RTS, OUT2: the interrupt's gate
    WRITE_PORT_UCHAR(Port + 1, 1);    // received data
}

INIT_CODE void HalpInitializeSerial(USHORT Port)
{
    HalpPort = Port;
    KeInitializeEvent(&HalSerialReady, SynchronizationEvent, FALSE);
    HalpResetSerial();
}

void HalpDrainSerial(void)
{
    for (ULONG Patience = 0; Patience < 2000000 && !(READ_PORT_UCHAR(HalpPort + 5) & 0x40); Patience++)
        __builtin_ia32_pause();
}

void HalpSerialInterrupt(void)
{
    while (READ_PORT_UCHAR(HalpPort + 5) & 1) {
        UCHAR Byte = READ_PORT_UCHAR(HalpPort);
        // A full ring loses what does not fit; the line then reads malformed.
        if (HalpHead - HalpTail < RING_SIZE) {
            HalpRing[HalpHead % RING_SIZE] = Byte;
            __atomic_signal_fence(__ATOMIC_SEQ_CST);
            HalpHead++;
        }
    }
    KiRequestDispatch(KeGetCurrentPrcb(), KI_DPC_SERIAL); // sets HalSerialReady
}

LONG HalSerialRead(void)
{
    if (HalpHead == HalpTail)
        return -1;
    UCHAR Byte = HalpRing[HalpTail % RING_SIZE];
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    HalpTail++;
    return Byte;
}

void HalSerialWrite(const CHAR *Text, SIZE_T Length)
{
    for (SIZE_T i = 0; i < Length; i++) {
        // A reader who has gone away must not hang the guest.
        for (ULONG Patience = 0; Patience < 2000000; Patience++) {
            if (READ_PORT_UCHAR(HalpPort + 5) & 0x20)
                break;
            __builtin_ia32_pause();
        }
        WRITE_PORT_UCHAR(HalpPort, (UCHAR)Text[i]);
    }
}
