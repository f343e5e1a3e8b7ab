import Glibc
import HypervisorInterface

/// A connected stream socket, read without blocking and written whole.
///
/// The only place of this module that calls read, write and poll.
final class Socket {
    let descriptor: Int32
    /// What is at the other end, for errors.
    let peer: String
    private(set) var atEnd = false

    init(descriptor: Int32, peer: String) {
        self.descriptor = descriptor
        self.peer = peer
        _ = fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK)
        _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
    }

    deinit { close(descriptor) }

    /// Appends whatever can be read now to `buffer`. Sets `atEnd` where the peer closed.
    func drain(into buffer: inout [UInt8]) {
        guard !atEnd else { return }
        withUnsafeTemporaryAllocation(byteCount: 16384, alignment: 8) { chunk in
            while true {
                let count = read(descriptor, chunk.baseAddress, chunk.count)
                if count > 0 {
                    buffer.append(contentsOf: chunk[..<count])
                } else if count < 0 && errno == EINTR {
                    continue
                } else {
                    if count == 0 || (errno != EAGAIN && errno != EWOULDBLOCK) { atEnd = true }
                    return
                }
            }
        }
    }

    /// Writes all of `bytes`.
    /// - Throws: `gone` where the peer closed, `timedOut` where it does not read for five seconds.
    func write(_ bytes: [UInt8]) throws(HypervisorError) {
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes {
                send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            if count > 0 {
                done += count
            } else if errno == EAGAIN || errno == EWOULDBLOCK {
                var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                if poll(&entry, 1, 5000) == 0 { throw .timedOut(waitingFor: "\(peer) to read") }
            } else if errno != EINTR {
                atEnd = true
                throw .gone("the connection to \(peer) was closed")
            }
        }
    }

    /// Waits until one of `descriptors` can be read (or closed), until `deadline` at the latest.
    /// - Returns: which of them are ready, in the same order.
    static func waitForInput(_ descriptors: [Int32], until deadline: Deadline) -> [Bool] {
        var entries = descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
        let left = deadline - ContinuousClock.now
        let (seconds, attoseconds) = left.components
        // Rounded up, so that a wait does not spin through its last millisecond.
        let milliseconds = seconds * 1000 + (attoseconds + 999_999_999_999_999) / 1_000_000_000_000_000
        let ready = poll(&entries, nfds_t(entries.count), Int32(clamping: max(0, milliseconds)))
        guard ready > 0 else { return Array(repeating: false, count: entries.count) }
        return entries.map { $0.revents != 0 }
    }
}

/// Called often while Vigil waits, so that whoever watches it knows that it is alive.
final class Pulse {
    /// The longest time between two beats while something waits.
    static let interval = Duration.milliseconds(100)

    var beat: () throws(HypervisorError) -> Void = { () throws(HypervisorError) in }
    private var last = ContinuousClock.now - interval

    /// Beats if it is time to.
    func touch() throws(HypervisorError) {
        let now = ContinuousClock.now
        guard now - last >= Self.interval else { return }
        last = now
        try beat()
    }

    /// `Socket.waitForInput`, beating meanwhile.
    func waitForInput(_ descriptors: [Int32], until deadline: Deadline) throws(HypervisorError) -> [Bool] {
        while true {
            try touch()
            let slice = min(deadline, ContinuousClock.now + Self.interval)
            let ready = Socket.waitForInput(descriptors, until: slice)
            if ready.contains(true) || ContinuousClock.now >= deadline { return ready }
        }
    }
}
