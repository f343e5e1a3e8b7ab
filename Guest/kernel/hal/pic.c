// The 8259 interrupt controllers, as the PC wires them (Intel 8259A data sheet).

#include "../include/hal.h"

#define MASTER 0x20
#define SLAVE 0xA0
#define END_OF_INTERRUPT 0x20
#define READ_IN_SERVICE 0x0B

static UCHAR HalpMask[2] = {0xFB, 0xFF}; // all but the cascade

// At boot, and whenever the machine was reset under us: the masks stay ours.
void HalpInitializePic(void)
{
    WRITE_PORT_UCHAR(MASTER, 0x11); // ICW1: edge triggered, cascade, ICW4
    WRITE_PORT_UCHAR(SLAVE, 0x11);
    WRITE_PORT_UCHAR(MASTER + 1, HAL_VECTOR_BASE);
    WRITE_PORT_UCHAR(SLAVE + 1, HAL_VECTOR_BASE + 8);
    WRITE_PORT_UCHAR(MASTER + 1, 4); // the slave is on line 2
    WRITE_PORT_UCHAR(SLAVE + 1, 2);
    WRITE_PORT_UCHAR(MASTER + 1, 1); // 8086 mode
    WRITE_PORT_UCHAR(SLAVE + 1, 1);
    WRITE_PORT_UCHAR(MASTER + 1, HalpMask[0]);
    WRITE_PORT_UCHAR(SLAVE + 1, HalpMask[1]);
}

void HalpEnableLine(ULONG Line)
{
    HalpMask[Line >> 3] &= (UCHAR)~(1 << (Line & 7));
    WRITE_PORT_UCHAR(Line < 8 ? MASTER + 1 : SLAVE + 1, HalpMask[Line >> 3]);
}

// A request that has gone by the time of its acknowledgement shows as line 7
// or 15 with nothing in service.
BOOLEAN HalpBeginInterrupt(ULONG Line)
{
    if ((Line & 7) != 7)
        return TRUE;
    USHORT Port = Line < 8 ? MASTER : SLAVE;
    WRITE_PORT_UCHAR(Port, READ_IN_SERVICE);
    if (READ_PORT_UCHAR(Port) & 0x80)
        return TRUE;
    if (Line == 15)
        WRITE_PORT_UCHAR(MASTER, END_OF_INTERRUPT);
    return FALSE;
}

void HalpEndInterrupt(ULONG Line)
{
    if (Line >= 8)
        WRITE_PORT_UCHAR(SLAVE, END_OF_INTERRUPT);
    WRITE_PORT_UCHAR(MASTER, END_OF_INTERRUPT);
}
