// Random numbers for the layout of this boot. Not for cryptography: it is
// enough that no two boots look alike.

#include "loader.h"

static int HasRdrand(void)
{
    // CPUID.1:ECX.RDRAND[30].
    uint32_t a = 1, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (c >> 30) & 1;
}

static uint64_t TimeStamp(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static uint8_t RealTimeClock(uint8_t index)
{
    Out8(0x70, index);
    return In8(0x71);
}

// One step of SplitMix64 (Steele, Lea and Flood, "Fast splittable
// pseudorandom number generators", 2014): spreads what entropy there is.
static uint64_t Mix(uint64_t value)
{
    value += 0x9E3779B97F4A7C15ull;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ull;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBull;
    return value ^ (value >> 31);
}

uint64_t Random64(void)
{
    static uint64_t pool;

    if (HasRdrand()) {
        for (int attempt = 0; attempt < 10; attempt++) {
            uint64_t value;
            uint8_t done;
            __asm__ volatile("rdrand %0; setc %1" : "=r"(value), "=qm"(done));
            if (done) {
                pool = Mix(pool ^ value);
                break;
            }
        }
    }
    // The time stamp counter, the seconds, minutes and hours, and channel 0 of
    // the interval timer, whose phase against the counter is what varies.
    for (int round = 0; round < 16; round++) {
        Out8(0x43, 0);
        uint64_t sample = In8(0x40);
        sample |= (uint64_t)In8(0x40) << 8;
        sample |= (uint64_t)RealTimeClock(0) << 16;
        sample |= (uint64_t)RealTimeClock(2) << 24;
        sample |= (uint64_t)RealTimeClock(4) << 32;
        pool = Mix(pool ^ sample ^ TimeStamp() << 8);
    }
    return pool;
}
