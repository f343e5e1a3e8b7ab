import Glibc

/// A disk for guests to hibernate to. It is empty, takes only the room of what is written to it, and is gone
/// with this object or this process.
public final class TemporaryDisk {
    /// Where QEMU finds it: the file has no name of its own, so that nothing can be left of it.
    public let path: String
    private let descriptor: Int32

    /// - Parameter size: in bytes; by default room for the memory of a guest of 128 MiB.
    public init(size: Int = 160 << 20) throws(GuestStartError) {
        var template = Array("/tmp/vigil-disk-XXXXXX".utf8CString)
        descriptor = mkstemp(&template)
        guard descriptor >= 0 else { throw .failed("no disk: \(String(cString: strerror(errno)))") }
        unlink(template)
        _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
        path = "/proc/\(getpid())/fd/\(descriptor)"
        guard ftruncate(descriptor, off_t(size)) == 0 else {
            throw .failed("no disk: \(String(cString: strerror(errno)))")
        }
    }

    deinit { close(descriptor) }
}
