// System calls and macros that Swift cannot call or say.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/// Reads `length` bytes at `address` of process `pid`. Returns 0 or an errno; a short read is EFAULT.
int clinux_process_read(pid_t pid, uint64_t address, void *buffer, size_t length);

/// Writes `length` bytes at `address` of process `pid`. Returns 0 or an errno; a short write is EFAULT.
int clinux_process_write(pid_t pid, uint64_t address, const void *buffer, size_t length);

/// Sends `length` bytes and one descriptor (SCM_RIGHTS) on a unix socket. Returns the bytes sent, or -errno.
ssize_t clinux_send_descriptor(int socket, const void *bytes, size_t length, int descriptor);

/// The process at the other end of a unix socket (SO_PEERCRED), or -errno.
pid_t clinux_peer_pid(int socket);

/// The device number that /proc writes as MAJOR:MINOR.
uint64_t clinux_device(unsigned int major, unsigned int minor);

/// posix_spawn's flag for a session of its own, which Glibc's module leaves out.
short clinux_spawn_new_session(void);

/// Starts a program that ends when the calling thread does (PR_SET_PDEATHSIG): the thread must live as long
/// as the program shall. The program's descriptors are `input` (-1: /dev/null), `output`, `errors` and, unless
/// it is -1, `inherited` as 3; its environment is `environment`, or the caller's where that is null. It leads a
/// process group of its own. Returns the process id, or -errno.
pid_t clinux_spawn_dependent(const char *path, char *const arguments[], char *const environment[], int input,
                             int output, int errors, int inherited);

/// The index of the first of `count` words that is `first` or one of the `length` values from there on; `count`
/// where there is none.
size_t clinux_find_word(const uint64_t *words, size_t count, uint64_t first, uint64_t length);

/// The same with words of 32 bits.
size_t clinux_find_word32(const uint32_t *words, size_t count, uint32_t first, uint32_t length);

/// A descriptor that can be read when process `pid` has ended, or -errno.
int clinux_process_descriptor(pid_t pid);
