import Glibc
import HypervisorInterface

/// The socket that QEMU's gdbstub talks on, and the names under which QEMU knows it.
enum DebugConnection {
    static let chardev = "vigil-gdb"
    static let passedDescriptor = "vigil-gdb-fd"

    /// Makes the connection's ends: a socket pair where a descriptor can be passed to QEMU; otherwise a
    /// socket that is connected later, and no other end.
    static func makeEnds(local: Bool) throws(HypervisorError) -> (ours: Int32, theirs: Int32?) {
        let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        if local {
            var pair: [Int32] = [-1, -1]
            guard socketpair(AF_UNIX, type, 0, &pair) == 0 else { throw failure("make a socket pair") }
            return (pair[0], pair[1])
        }
        let ours = socket(AF_INET, type, 0)
        guard ours >= 0 else { throw failure("make a socket") }
        return (ours, nil)
    }

    /// Connects a socket to a port of this host, which somebody listens on.
    static func connect(_ socket: Int32, port: UInt16) throws(HypervisorError) {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        // Non-blocking while it connects would end in EINPROGRESS.
        let flags = fcntl(socket, F_GETFL)
        _ = fcntl(socket, F_SETFL, flags & ~O_NONBLOCK)
        defer { _ = fcntl(socket, F_SETFL, flags) }
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard result == 0 else {
            throw .unsupported(
                "QEMU's debug connection cannot be reached on port \(port) of this host (\(String(cString: strerror(errno)))): "
                    + "over TCP, Vigil must run where QEMU runs")
        }
        var one: Int32 = 1
        setsockopt(socket, Int32(IPPROTO_TCP), TCP_NODELAY, &one, socklen_t(MemoryLayout<Int32>.size))
    }

    private static func failure(_ what: String) -> HypervisorError {
        .unsupported("cannot \(what): \(String(cString: strerror(errno)))")
    }
}
