import Glibc
import HypervisorInterface

/// Where a QEMU's QMP socket is: `qemu:PATH` or `qemu:HOST:PORT`.
public enum QEMUTarget: Equatable, Sendable {
    case unix(path: String)
    case tcp(host: String, port: String)

    /// Parses what follows `qemu:`. What has a slash is a path; what ends in a colon and digits is an
    /// address; anything else is a path.
    public init(_ text: String) {
        if !text.contains("/"), let colon = text.lastIndex(of: ":") {
            let port = text[text.index(after: colon)...]
            let host = text[..<colon]
            if !host.isEmpty, let number = UInt16(port), number > 0 {
                self = .tcp(host: String(host), port: String(port))
                return
            }
        }
        self = .unix(path: text)
    }

    public var description: String {
        switch self {
        case .unix(let path): "qemu:\(path)"
        case .tcp(let host, let port): "qemu:\(host):\(port)"
        }
    }

    /// Opens a connection.
    func connect() throws(HypervisorError) -> Socket {
        switch self {
        case .unix(let path): try connectUnix(path)
        case .tcp(let host, let port): try connectTCP(host, port)
        }
    }

    private func failure(_ code: Int32) -> HypervisorError {
        let reason =
            switch code {
            case ENOENT: "no such socket"
            case ECONNREFUSED: "nobody listens there (has QEMU ended?)"
            case EACCES, EPERM: "permission denied (run Vigil as the user that QEMU runs as, or as root)"
            case ENAMETOOLONG: "the path is too long for a socket (107 bytes at most)"
            default: String(cString: strerror(code))
            }
        return code == ENOENT || code == ECONNREFUSED
            ? .absent(target: description, reason: reason) : .cannotConnect(target: description, reason: reason)
    }

    private func connectUnix(_ path: String) throws(HypervisorError) -> Socket {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { throw failure(ENAMETOOLONG) }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw failure(errno) }
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard result == 0 else {
            let code = errno
            close(descriptor)
            // A path that is there but no socket refuses the connection too: say what it is.
            var status = stat()
            if code == ECONNREFUSED, stat(path, &status) == 0, status.st_mode & S_IFMT != S_IFSOCK {
                throw .cannotConnect(target: description, reason: "that is not a socket")
            }
            throw failure(code)
        }
        return Socket(descriptor: descriptor, peer: "QEMU's QMP socket")
    }

    private func connectTCP(_ host: String, _ port: String) throws(HypervisorError) -> Socket {
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        let status = getaddrinfo(host, port, &hints, &list)
        guard status == 0 else {
            throw .cannotConnect(target: description, reason: String(cString: gai_strerror(status)))
        }
        defer { freeaddrinfo(list) }
        var code = ECONNREFUSED
        var next = list
        while let info = next?.pointee {
            let descriptor = socket(info.ai_family, info.ai_socktype | Int32(SOCK_CLOEXEC.rawValue), info.ai_protocol)
            if descriptor >= 0 {
                if Glibc.connect(descriptor, info.ai_addr, info.ai_addrlen) == 0 {
                    var one: Int32 = 1
                    setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &one, socklen_t(MemoryLayout<Int32>.size))
                    return Socket(descriptor: descriptor, peer: "QEMU at \(host):\(port)")
                }
                code = errno
                close(descriptor)
            }
            next = info.ai_next
        }
        throw failure(code)
    }
}
