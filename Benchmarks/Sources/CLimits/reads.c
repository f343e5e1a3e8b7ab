#define _GNU_SOURCE
#include "reads.h"

#include <string.h>
#include <sys/uio.h>

#define ADDRESS_MASK UINT64_C(0x000ffffffffff000)
#define PRESENT UINT64_C(1)
#define LARGE UINT64_C(0x80)

static inline uint64_t load(const uint8_t *ram, uint64_t address)
{
    uint64_t value;
    memcpy(&value, ram + address, sizeof(value));
    return value;
}

uint64_t limit_walk(const uint8_t *ram, uint64_t size, uint64_t root, const uint64_t *addresses, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t address = addresses[i];
        uint64_t table = root & ADDRESS_MASK;
        unsigned shift = 39;
        uint64_t entry;
        for (;;) {
            uint64_t place = table + ((address >> shift) & 511) * 8;
            if (place > size - 8)
                goto next;
            entry = load(ram, place);
            if (!(entry & PRESENT))
                goto next;
            if (shift == 12 || (entry & LARGE))
                break;
            table = entry & ADDRESS_MASK;
            shift -= 9;
        }
        uint64_t inside = (UINT64_C(1) << shift) - 1;
        uint64_t place = (entry & ADDRESS_MASK & ~inside) | (address & inside);
        if (place <= size - 8)
            sum += load(ram, place);
    next:;
    }
    return sum;
}

uint64_t limit_copy(void *buffer, const uint64_t *addresses, size_t count, size_t length)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        // The length is not known here: this is a call.
        memcpy(buffer, (const void *)(uintptr_t)addresses[i], length);
        sum += load(buffer, 0);
    }
    return sum;
}

uint64_t limit_process_copy(pid_t pid, void *buffer, const uint64_t *addresses, size_t count, size_t length)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        struct iovec local = {.iov_base = buffer, .iov_len = length};
        struct iovec remote = {.iov_base = (void *)(uintptr_t)addresses[i], .iov_len = length};
        if (process_vm_readv(pid, &local, 1, &remote, 1, 0) != (ssize_t)length)
            return UINT64_MAX;
        sum += load(buffer, 0);
    }
    return sum;
}
