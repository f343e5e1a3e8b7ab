import Foundation
import Glibc

/// A named pipe by which a test and a shell command wait for each other.
public final class NamedPipe {
    public let path: String
    private let descriptor: Int32
    private var buffer: [UInt8] = []

    public init() {
        path = "/tmp/vigil-test-pipe-\(getpid())-\(UInt32.random(in: .min ... .max))"
        mkfifo(path, 0o600)
        // Open at both ends: nobody waits in open(2), and there is no end of file.
        descriptor = open(path, O_RDWR | O_CLOEXEC)
    }

    deinit {
        close(descriptor)
        unlink(path)
    }

    /// The next line; nil where none comes for a minute.
    public func readLine() -> String? {
        while true {
            if let end = buffer.firstIndex(of: UInt8(ascii: "\n")) {
                defer { buffer.removeSubrange(...end) }
                return String(decoding: buffer[..<end], as: UTF8.self)
            }
            var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            guard poll(&entry, 1, 60_000) > 0 else { return nil }
            var chunk = [UInt8](repeating: 0, count: 512)
            let count = read(descriptor, &chunk, chunk.count)
            if count > 0 { buffer += chunk[..<count] }
        }
    }

    public func write(line: String) {
        let bytes = Array((line + "\n").utf8)
        _ = Glibc.write(descriptor, bytes, bytes.count)
    }
}
