#define _GNU_SOURCE
#include "clinux.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

int clinux_process_read(pid_t pid, uint64_t address, void *buffer, size_t length)
{
    struct iovec local = {.iov_base = buffer, .iov_len = length};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)address, .iov_len = length};
    ssize_t done = process_vm_readv(pid, &local, 1, &remote, 1, 0);
    if (done < 0)
        return errno;
    return (size_t)done == length ? 0 : EFAULT;
}

int clinux_process_write(pid_t pid, uint64_t address, const void *buffer, size_t length)
{
    struct iovec local = {.iov_base = (void *)buffer, .iov_len = length};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)address, .iov_len = length};
    ssize_t done = process_vm_writev(pid, &local, 1, &remote, 1, 0);
    if (done < 0)
        return errno;
    return (size_t)done == length ? 0 : EFAULT;
}

ssize_t clinux_send_descriptor(int socket, const void *bytes, size_t length, int descriptor)
{
    struct iovec part = {.iov_base = (void *)bytes, .iov_len = length};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &descriptor, sizeof(int));

    ssize_t sent;
    do
        sent = sendmsg(socket, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
}

pid_t clinux_peer_pid(int socket)
{
    struct ucred peer;
    socklen_t length = sizeof(peer);
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
        return -errno;
    return peer.pid;
}

uint64_t clinux_device(unsigned int major, unsigned int minor) { return makedev(major, minor); }

short clinux_spawn_new_session(void) { return POSIX_SPAWN_SETSID; }

pid_t clinux_spawn_dependent(const char *path, char *const arguments[], char *const environment[], int input,
                             int output, int errors, int inherited)
{
    if (access(path, X_OK) != 0)
        return -errno;
    // Only async-signal-safe calls after the fork: other threads may hold any lock.
    pid_t parent = getpid();
    pid_t child = fork();
    if (child < 0)
        return -errno;
    if (child > 0) {
        // The child does so too: whoever comes first, a signal to the group finds it.
        setpgid(child, child);
        return child;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(127);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    // What is ignored stays ignored in a new program.
    signal(SIGPIPE, SIG_DFL);
    // A group of its own: a terminal's Ctrl-C is for whoever started the program.
    setpgid(0, 0);
    if (input < 0)
        input = open("/dev/null", O_RDWR);
    // Copies above the numbers that the program wants, so that no copy overwrites a source.
    int sources[] = {input, output, errors, inherited};
    for (int index = 0; index < 4; index++)
        sources[index] = sources[index] >= 0 ? fcntl(sources[index], F_DUPFD, 16) : -1;
    for (int index = 0; index < 4; index++)
        if (sources[index] >= 0)
            dup2(sources[index], index);
    for (int descriptor = inherited >= 0 ? 4 : 3; descriptor < 1024; descriptor++)
        close(descriptor);
    execve(path, arguments, environment ? environment : environ);
    _exit(127);
}

int clinux_process_descriptor(pid_t pid)
{
    long descriptor = syscall(SYS_pidfd_open, pid, 0);
    return descriptor < 0 ? -errno : (int)descriptor;
}

size_t clinux_find_word32(const uint32_t *words, size_t count, uint32_t first, uint32_t length)
{
    size_t index = 0;
    while (index < count && words[index] - first >= length)
        index++;
    return index;
}

size_t clinux_find_word(const uint64_t *words, size_t count, uint64_t first, uint64_t length)
{
    size_t index = 0;
    while (index < count && words[index] - first >= length)
        index++;
    return index;
}
