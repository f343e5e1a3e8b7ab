// The first disk of the first IDE channel, by polling, without interrupts: for
// the kernel, which writes memory to it when nothing else runs any more, and for
// the loader, which reads it back (ATA/ATAPI-6, T13/1410D, chapters 8 and 9).
// Everything is inlined: the loader's part is moved before it runs.

#ifndef VIGIL_ATA_H
#define VIGIL_ATA_H

#include <stdint.h>

#define ATA_SECTOR 512u
#define ATA_COMMAND_SECTORS 128u // at most, in one call
#define ATA_BLOCK_SECTORS 16u    // between two waits: each is a turn of the host's own disk

#define ATA_DATA 0x1F0
#define ATA_COUNT 0x1F2
#define ATA_LBA 0x1F3 // and the two after it
#define ATA_DEVICE 0x1F6
#define ATA_STATUS 0x1F7
#define ATA_CONTROL 0x3F6

#define ATA_BUSY 0x80
#define ATA_READY 0x40
#define ATA_FAULT 0x20
#define ATA_REQUEST 0x08
#define ATA_ERROR 0x01

#define ATA_READ_MULTIPLE 0xC4
#define ATA_WRITE_MULTIPLE 0xC5
#define ATA_SET_MULTIPLE 0xC6
#define ATA_FLUSH_CACHE 0xE7
#define ATA_IDENTIFY 0xEC

#define ATA_INLINE static inline __attribute__((always_inline))

ATA_INLINE void AtaOut(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

ATA_INLINE uint8_t AtaIn(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

// Until it is not busy and has `wanted`; 0: it has failed, or is not there.
ATA_INLINE int AtaWait(uint8_t wanted)
{
    for (uint32_t patience = 0; patience < 10000000; patience++) {
        uint8_t status = AtaIn(ATA_STATUS);
        if (status == 0xFF || status == 0)
            return 0;
        if (status & ATA_BUSY)
            continue;
        if (status & (ATA_ERROR | ATA_FAULT))
            return 0;
        if ((status & wanted) == wanted)
            return 1;
    }
    return 0;
}

ATA_INLINE int AtaBegin(uint8_t command, uint32_t sector, uint32_t count)
{
    uint32_t patience = 10000000;
    AtaOut(ATA_CONTROL, 2); // no interrupts
    AtaOut(ATA_DEVICE, (uint8_t)(0xE0 | (sector >> 24 & 15)));
    // An error that the last command ended with still shows, and does not matter.
    for (;;) {
        uint8_t status = AtaIn(ATA_STATUS);
        if ((status & (ATA_BUSY | ATA_READY)) == ATA_READY)
            break;
        if (status == 0xFF || status == 0 || --patience == 0) // no controller, no disk
            return 0;
    }
    AtaOut(ATA_COUNT, (uint8_t)count);
    AtaOut(ATA_LBA, (uint8_t)sector);
    AtaOut(ATA_LBA + 1, (uint8_t)(sector >> 8));
    AtaOut(ATA_LBA + 2, (uint8_t)(sector >> 16));
    AtaOut(ATA_STATUS, command);
    return 1;
}

// Begins a command that moves blocks of sectors.
ATA_INLINE int AtaBeginBlocks(uint8_t command, uint32_t sector, uint32_t count)
{
    return AtaBegin(ATA_SET_MULTIPLE, 0, ATA_BLOCK_SECTORS) && AtaWait(ATA_READY) &&
           AtaBegin(command, sector, count);
}

ATA_INLINE int AtaRead(uint32_t sector, void *to, uint32_t count)
{
    if (!AtaBeginBlocks(ATA_READ_MULTIPLE, sector, count))
        return 0;
    while (count) {
        uint32_t block = count < ATA_BLOCK_SECTORS ? count : ATA_BLOCK_SECTORS;
        uint32_t words = block * ATA_SECTOR / 4;
        if (!AtaWait(ATA_REQUEST))
            return 0;
        __asm__ volatile("cld; rep insl" : "+D"(to), "+c"(words) : "d"(ATA_DATA) : "memory");
        count -= block;
    }
    return 1;
}

ATA_INLINE int AtaWrite(uint32_t sector, const void *from, uint32_t count)
{
    if (!AtaBeginBlocks(ATA_WRITE_MULTIPLE, sector, count))
        return 0;
    while (count) {
        uint32_t block = count < ATA_BLOCK_SECTORS ? count : ATA_BLOCK_SECTORS;
        uint32_t words = block * ATA_SECTOR / 4;
        if (!AtaWait(ATA_REQUEST))
            return 0;
        __asm__ volatile("cld; rep outsl" : "+S"(from), "+c"(words) : "d"(ATA_DATA) : "memory");
        count -= block;
    }
    return AtaWait(ATA_READY);
}

ATA_INLINE int AtaFlush(void)
{
    return AtaBegin(ATA_FLUSH_CACHE, 0, 0) && AtaWait(ATA_READY);
}

// How many sectors 28 bits can address on it; 0: there is no disk.
ATA_INLINE uint32_t AtaSectors(uint16_t *identity)
{
    uint32_t words = ATA_SECTOR / 4;
    void *to = identity;
    if (!AtaBegin(ATA_IDENTIFY, 0, 0) || !AtaWait(ATA_REQUEST))
        return 0;
    __asm__ volatile("cld; rep insl" : "+D"(to), "+c"(words) : "d"(ATA_DATA) : "memory");
    return (uint32_t)identity[61] << 16 | identity[60];
}

#endif
