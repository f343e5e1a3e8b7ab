import CLinux
import Glibc

/// Waits until a process that need not be a child has ended.
/// - Returns: false where it still runs after a minute.
public func processEnds(_ pid: Int32) -> Bool {
    let descriptor = clinux_process_descriptor(pid)
    guard descriptor >= 0 else { return descriptor == -ESRCH }
    defer { close(descriptor) }
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return poll(&entry, 1, 60_000) > 0
}
