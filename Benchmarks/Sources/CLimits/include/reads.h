// What reading guest RAM costs in C: each function does a batch, so that calling it from elsewhere costs nothing.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/// Loads 8 bytes at each of `count` linear addresses, walking 4-level page tables for each, and returns their sum.
/// `ram` is guest-physical address 0, `size` its length. A walk that leaves RAM, or meets an entry that is not
/// present, contributes nothing.
uint64_t limit_walk(const uint8_t *ram, uint64_t size, uint64_t root, const uint64_t *addresses, size_t count);

/// Copies `length` bytes from each of `count` host addresses to `buffer`, with a call of memcpy for each, and returns
/// the sum of the first 8 bytes of each.
uint64_t limit_copy(void *buffer, const uint64_t *addresses, size_t count, size_t length);

/// The same by process_vm_readv from process `pid`, with a call for each. UINT64_MAX where a call failed.
uint64_t limit_process_copy(pid_t pid, void *buffer, const uint64_t *addresses, size_t count, size_t length);
