// A bare client of QEMU: its QMP socket and its gdbstub, blocking, with no guardian and no accounting.
// Every function returns 0, or -1 where QEMU did not do what was asked, unless it says otherwise.
#pragma once
#include <stdint.h>

typedef struct limit_client limit_client;

/// Connects to a QMP socket and leaves the negotiation. NULL where that fails.
limit_client *limit_connect(const char *path);

/// Closes the connection. What was armed stays armed.
void limit_close(limit_client *client);

/// Passes QEMU a descriptor, starts the gdbstub on it, sets one breakpoint and lets the guest run.
int limit_arm(limit_client *client, uint64_t address);

/// Removes the breakpoint and ends the gdbstub. The guest runs.
int limit_disarm(limit_client *client);

/// Waits for `count` stops at the breakpoint, and at each reads the registers, removes the breakpoint, steps, sets it
/// again and continues.
int limit_round_trips(limit_client *client, int count);

/// Waits for a stop at the breakpoint and puts a write watchpoint in its place, on the 8 bytes that RCX points at: the
/// function's first argument.
int limit_watch(limit_client *client);

/// Waits for `count` stops behind writes to them, and at each reads the registers and continues.
int limit_watched(limit_client *client, int count);

/// One such stop, with the guest standing for `milliseconds` after the registers were read.
/// Returns the nanoseconds from the stop's arrival until QEMU took the continue, or -1.
int64_t limit_hold(limit_client *client, int milliseconds);

/// Goes on from a further stop, if there is one within `milliseconds`: a call whose page was absent comes to the
/// breakpoint again.
int limit_go_on(limit_client *client, int milliseconds);

/// For how many microseconds the guest has stood still since the connection was opened, by the times in QEMU's own
/// events STOP and RESUME. Waits for a RESUME that is outstanding, for a second at most; then -1.
int64_t limit_stood_still(limit_client *client);
