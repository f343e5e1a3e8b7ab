// The machine code that a held caller waits in, and where its named public data lies.
#pragma once
#include <stdint.h>

/// Offsets are in bytes from the code's start.
struct cdetour_layout {
    const uint8_t *code;
    uint32_t length;
    /// Where callers are sent, one stub for each slot, from offset 0.
    uint32_t stub_size;
    uint32_t slots;
    /// One byte for each slot: other than 0, its caller waits.
    uint32_t wait;
    /// One byte, changed again and again by a living Vigil.
    uint32_t lease;
    /// How long the lease byte may stay as it is before callers go by themselves, in 100 ns. 64 bits.
    uint32_t lease_limit;
    /// The address of the guest's shared user data (KUSER_SHARED_DATA), or 0: then there is no lease.
    uint32_t shared_data;
    /// The address of the guest's KeDelayExecutionThread, or 0: then the wait is a pause loop.
    uint32_t delay_function;
    /// How long one delay lasts: negative, in 100 ns, as KeDelayExecutionThread takes it. 64 bits.
    uint32_t delay_interval;
    /// The address of the intercepted function's entry, where every caller goes from here.
    uint32_t entry;
};

struct cdetour_layout cdetour_layout(void);
