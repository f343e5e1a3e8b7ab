import Glibc

/// Turns SIGINT, SIGTERM and SIGHUP into a byte on a descriptor, so that a wait ends and Vigil leaves in
/// good order. A second signal ends the process at once, and the guardian cleans up.
enum InterruptSignals {
    /// The end of the pipe that signals are read from.
    private(set) nonisolated(unsafe) static var readEnd: Int32 = -1
    private nonisolated(unsafe) static var writeEnd: Int32 = -1

    /// Ends the wait as a signal would.
    static func raise() {
        var byte: UInt8 = 1
        _ = write(writeEnd, &byte, 1)
    }

    /// Waits for a signal.
    /// - Returns: whether one came in time; it is taken then.
    static func wait(_ duration: Duration) -> Bool {
        let milliseconds = duration / .milliseconds(1)
        var request = pollfd(fd: readEnd, events: Int16(POLLIN), revents: 0)
        guard poll(&request, 1, Int32(milliseconds.rounded(.up))) > 0 else { return false }
        var byte: UInt8 = 0
        return read(readEnd, &byte, 1) == 1
    }

    static func install() {
        guard readEnd < 0 else { return }
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { return }
        for end in ends {
            _ = fcntl(end, F_SETFD, FD_CLOEXEC)
            _ = fcntl(end, F_SETFL, O_NONBLOCK)
        }
        (readEnd, writeEnd) = (ends[0], ends[1])
        // Whoever started Vigil may have blocked them (a worker thread of libdispatch does).
        var signals = sigset_t()
        sigemptyset(&signals)
        for number in [SIGINT, SIGTERM, SIGHUP] { sigaddset(&signals, number) }
        pthread_sigmask(SIG_UNBLOCK, &signals, nil)
        for number in [SIGINT, SIGTERM, SIGHUP] {
            signal(number) { received in
                InterruptSignals.raise()
                signal(received, SIG_DFL)
            }
        }
        signal(SIGPIPE, SIG_IGN)
    }
}
