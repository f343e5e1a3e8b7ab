#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define TIMEOUT_MS 10000
#define CHARDEV "limit-gdb"

struct limit_client {
    int qmp;
    int debug;
    uint64_t address;
    char line[65536];
    size_t filled;
    // Microseconds.
    int64_t stopped_at;
    int64_t stood_still;
    char packet[8192];
    size_t packet_filled;
};

static int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int wait_for(int descriptor, int milliseconds)
{
    struct pollfd entry = {.fd = descriptor, .events = POLLIN};
    int ready;
    do
        ready = poll(&entry, 1, milliseconds);
    while (ready < 0 && errno == EINTR);
    return ready > 0 ? 0 : -1;
}

static int write_all(int descriptor, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t done = send(descriptor, bytes, length, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return -1;
        bytes += done;
        length -= (size_t)done;
    }
    return 0;
}

// MARK: QMP

static int64_t event_time(const char *line)
{
    long long seconds, microseconds;
    const char *place = strstr(line, "\"seconds\": ");
    if (!place || sscanf(place, "\"seconds\": %lld, \"microseconds\": %lld", &seconds, &microseconds) != 2)
        return -1;
    return seconds * INT64_C(1000000) + microseconds;
}

static void note(limit_client *client, const char *line)
{
    if (strstr(line, "\"event\": \"STOP\"")) {
        client->stopped_at = event_time(line);
    } else if (strstr(line, "\"event\": \"RESUME\"") && client->stopped_at >= 0) {
        client->stood_still += event_time(line) - client->stopped_at;
        client->stopped_at = -1;
    }
}

// Reads lines until one contains `text`. -1 where an error or nothing comes.
static int read_until(limit_client *client, const char *text, int milliseconds)
{
    for (;;) {
        char *end;
        while ((end = memchr(client->line, '\n', client->filled))) {
            *end = 0;
            size_t length = (size_t)(end - client->line) + 1;
            note(client, client->line);
            int found = strstr(client->line, text) != NULL;
            int failed = !found && strstr(client->line, "\"error\"") != NULL;
            client->filled -= length;
            memmove(client->line, end + 1, client->filled);
            if (found)
                return 0;
            if (failed)
                return -1;
        }
        if (client->filled == sizeof(client->line) || wait_for(client->qmp, milliseconds) < 0)
            return -1;
        ssize_t count = read(client->qmp, client->line + client->filled, sizeof(client->line) - client->filled);
        if (count <= 0)
            return -1;
        client->filled += (size_t)count;
    }
}

static int execute(limit_client *client, const char *command)
{
    if (write_all(client->qmp, command, strlen(command)) < 0)
        return -1;
    return read_until(client, "\"return\"", TIMEOUT_MS);
}

static int execute_passing(limit_client *client, const char *command, int descriptor)
{
    struct iovec part = {.iov_base = (void *)command, .iov_len = strlen(command)};
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
    if (sendmsg(client->qmp, &message, MSG_NOSIGNAL) != (ssize_t)part.iov_len)
        return -1;
    return read_until(client, "\"return\"", TIMEOUT_MS);
}

limit_client *limit_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return NULL;
    strcpy(address.sun_path, path);
    limit_client *client = calloc(1, sizeof(*client));
    if (!client)
        return NULL;
    client->debug = -1;
    client->stopped_at = -1;
    client->qmp = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->qmp < 0 || connect(client->qmp, (struct sockaddr *)&address, sizeof(address)) < 0
        || read_until(client, "\"QMP\"", TIMEOUT_MS) < 0
        || execute(client, "{\"execute\":\"qmp_capabilities\"}\n") < 0) {
        limit_close(client);
        return NULL;
    }
    return client;
}

void limit_close(limit_client *client)
{
    if (client->qmp >= 0)
        close(client->qmp);
    if (client->debug >= 0)
        close(client->debug);
    free(client);
}

int64_t limit_stood_still(limit_client *client)
{
    // Nothing answers this: whatever comes within no time is taken in.
    read_until(client, "\"no such line\"", 0);
    while (client->stopped_at >= 0)
        if (read_until(client, "\"event\": \"RESUME\"", 1000) < 0)
            return -1;
    return client->stood_still;
}

// MARK: The gdbstub

static size_t frame(char *packet, const char *payload)
{
    uint8_t sum = 0;
    for (const char *c = payload; *c; c++)
        sum += (uint8_t)*c;
    return (size_t)sprintf(packet, "$%s#%02x", payload, sum);
}

// The payload of the next packet, valid until the next call, or NULL.
static const char *receive_packet(limit_client *client, int milliseconds, size_t *taken)
{
    for (;;) {
        char *start = memchr(client->packet, '$', client->packet_filled);
        char *stop = client->packet + client->packet_filled;
        char *end = start ? memchr(start, '#', (size_t)(stop - start)) : NULL;
        if (end && end + 2 < stop) {
            *end = 0;
            *taken = (size_t)(end + 3 - client->packet);
            return start + 1;
        }
        if (client->packet_filled == sizeof(client->packet) || wait_for(client->debug, milliseconds) < 0)
            return NULL;
        ssize_t count = read(client->debug, stop, sizeof(client->packet) - client->packet_filled);
        if (count <= 0)
            return NULL;
        client->packet_filled += (size_t)count;
    }
}

static void drop(limit_client *client, size_t count)
{
    client->packet_filled -= count;
    memmove(client->packet, client->packet + count, client->packet_filled);
}

// Takes the next packet, which begins with `expected`.
static int expect(limit_client *client, const char *expected)
{
    size_t taken;
    const char *payload = receive_packet(client, TIMEOUT_MS, &taken);
    int matches = payload && strncmp(payload, expected, strlen(expected)) == 0;
    if (payload)
        drop(client, taken);
    return matches ? 0 : -1;
}

static int transact(limit_client *client, const char *payload, const char *expected)
{
    char packet[128];
    size_t length = frame(packet, payload);
    return write_all(client->debug, packet, length) < 0 ? -1 : expect(client, expected);
}

// Waits until QEMU has taken a packet: its acknowledgement comes before anything that the packet leads to.
static int await_acknowledgement(limit_client *client)
{
    while (!client->packet_filled) {
        if (wait_for(client->debug, TIMEOUT_MS) < 0)
            return -1;
        ssize_t count = read(client->debug, client->packet, sizeof(client->packet));
        if (count <= 0)
            return -1;
        client->packet_filled = (size_t)count;
    }
    if (client->packet[0] != '+')
        return -1;
    drop(client, 1);
    return 0;
}

static int continue_guest(limit_client *client)
{
    return write_all(client->debug, "$c#63", 5) < 0 ? -1 : await_acknowledgement(client);
}

static void breakpoint(limit_client *client, char verb, char *payload)
{
    sprintf(payload, "%c1,%llx,1", verb, (unsigned long long)client->address);
}

int limit_arm(limit_client *client, uint64_t address)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return -1;
    client->debug = pair[0];
    client->address = address;
    client->packet_filled = 0;
    int passed = execute_passing(
        client, "{\"execute\":\"getfd\",\"arguments\":{\"fdname\":\"" CHARDEV "-fd\"}}\n", pair[1]);
    close(pair[1]);
    if (passed < 0
        || execute(client, "{\"execute\":\"chardev-add\",\"arguments\":{\"id\":\"" CHARDEV "\",\"backend\":"
                           "{\"type\":\"socket\",\"data\":{\"addr\":{\"type\":\"fd\",\"data\":{\"str\":\"" CHARDEV
                           "-fd\"}},\"server\":false}}}}\n")
            < 0
        || execute(client, "{\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":"
                           "\"gdbserver chardev:" CHARDEV "\"}}\n")
            < 0)
        return -1;
    // Both packets in one write: the guest stands meanwhile.
    char payload[64], packets[128];
    breakpoint(client, 'Z', payload);
    size_t length = frame(packets, payload);
    length += frame(packets + length, "c");
    if (write_all(client->debug, packets, length) < 0)
        return -1;
    // Whether the stop is reported too depends on when the stub met its connection.
    size_t taken;
    const char *reply = receive_packet(client, TIMEOUT_MS, &taken);
    if (reply && reply[0] == 'T') {
        drop(client, taken);
        reply = receive_packet(client, TIMEOUT_MS, &taken);
    }
    if (!reply || strcmp(reply, "OK") != 0)
        return -1;
    drop(client, taken);
    return await_acknowledgement(client);
}

int limit_disarm(limit_client *client)
{
    size_t taken;
    const char *reply;
    // A detach clears all breakpoints and lets the guest run. A stop at the breakpoint may be on its way as well.
    if (write_all(client->debug, "+\x03", 2) < 0 || !(reply = receive_packet(client, TIMEOUT_MS, &taken)))
        return -1;
    drop(client, taken);
    char packet[16];
    size_t length = frame(packet, "D");
    if (write_all(client->debug, packet, length) < 0)
        return -1;
    do {
        if (!(reply = receive_packet(client, TIMEOUT_MS, &taken)))
            return -1;
        int done = strcmp(reply, "OK") == 0;
        drop(client, taken);
        if (done)
            break;
    } while (1);
    // This removes the chardev too.
    int result = execute(client, "{\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":"
                                 "\"gdbserver none\"}}\n");
    close(client->debug);
    client->debug = -1;
    return result;
}

// Whether the vCPU still stands at the breakpoint. RIP is the 17th register of 8 bytes in a "g" reply, least
// significant byte first.
static int is_at_breakpoint(limit_client *client)
{
    size_t taken;
    const char *reply;
    if (write_all(client->debug, "$g#67", 5) < 0 || !(reply = receive_packet(client, TIMEOUT_MS, &taken)))
        return -1;
    char expected[17];
    for (int i = 0; i < 8; i++)
        sprintf(expected + 2 * i, "%02x", (unsigned)(client->address >> (8 * i) & 255));
    int result = strlen(reply) >= 272 && strncmp(reply + 256, expected, 16) == 0;
    drop(client, taken);
    return result;
}

// From a stop at the breakpoint to the guest running on.
static int go_on(limit_client *client, int checks_step)
{
    char insert[64], removal[64];
    breakpoint(client, 'Z', insert);
    breakpoint(client, 'z', removal);
    if (transact(client, removal, "OK") < 0)
        return -1;
    int again;
    do {
        if (transact(client, "vCont;s:1", "T05") < 0)
            return -1;
        // After a long stop QEMU may end a step for an interrupt controller's business, nothing executed.
        again = checks_step ? is_at_breakpoint(client) : 0;
    } while (again > 0);
    if (again < 0 || transact(client, insert, "OK") < 0)
        return -1;
    return continue_guest(client);
}

int limit_round_trips(limit_client *client, int count)
{
    for (int i = 0; i < count; i++)
        if (expect(client, "T05") < 0 || transact(client, "g", "") < 0 || go_on(client, 0) < 0)
            return -1;
    return 0;
}

int limit_watch(limit_client *client)
{
    char payload[64];
    size_t taken;
    const char *reply;
    if (expect(client, "T05") < 0 || write_all(client->debug, "$g#67", 5) < 0
        || !(reply = receive_packet(client, TIMEOUT_MS, &taken)) || strlen(reply) < 48)
        return -1;
    // RCX is the third register.
    uint64_t address = 0;
    for (int i = 7; i >= 0; i--) {
        char digits[3] = {reply[32 + 2 * i], reply[33 + 2 * i], 0};
        address = address << 8 | strtoul(digits, NULL, 16);
    }
    drop(client, taken);
    breakpoint(client, 'z', payload);
    if (transact(client, payload, "OK") < 0)
        return -1;
    sprintf(payload, "Z2,%llx,8", (unsigned long long)address);
    return transact(client, payload, "OK") < 0 ? -1 : continue_guest(client);
}

int limit_watched(limit_client *client, int count)
{
    for (int i = 0; i < count; i++)
        if (expect(client, "T05") < 0 || transact(client, "g", "") < 0 || continue_guest(client) < 0)
            return -1;
    return 0;
}

int64_t limit_hold(limit_client *client, int milliseconds)
{
    if (expect(client, "T05") < 0)
        return -1;
    int64_t start = nanoseconds();
    if (transact(client, "g", "") < 0)
        return -1;
    poll(NULL, 0, milliseconds);
    if (go_on(client, 1) < 0)
        return -1;
    return nanoseconds() - start;
}

int limit_go_on(limit_client *client, int milliseconds)
{
    size_t taken;
    if (!receive_packet(client, milliseconds, &taken))
        return 0;
    drop(client, taken);
    return go_on(client, 1);
}
