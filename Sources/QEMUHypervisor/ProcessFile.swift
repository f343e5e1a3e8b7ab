import Glibc

/// Files of /proc that describe a process. The kernel says that they are empty and gives them piece by piece, so
/// that whoever trusts their size, or one read, gets a part of them.
enum ProcessFile {
    /// Longer than any of them.
    private static let maximum = 64 << 20

    /// Reads /proc/PID/NAME to its end.
    /// - Returns: nil where there is no such process, or no permission.
    static func read(_ name: String, of pid: Int32) -> String? {
        let descriptor = open("/proc/\(pid)/\(name)", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var text: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 64 << 10)
        while text.count < maximum {
            let count = Glibc.read(descriptor, &piece, piece.count)
            if count == 0 { return String(decoding: text, as: UTF8.self) }
            guard count > 0 || errno == EINTR else { return nil }
            text += piece[..<max(0, count)]
        }
        return nil
    }
}
